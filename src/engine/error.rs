//! The engine's errors, with the failure class that a run reports at its end.

use std::io;
use std::path::PathBuf;

use luthier_core::model::ModelError;
use luthier_core::plan::NoGpu;
use luthier_core::runs::{FailureClass, awaited};
use tch::{TchError, Tensor};

pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// An error of the engine. [`EngineError::class`] gives its failure class, [`EngineError::remedy`] what to do
/// about it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An allocation failed, on the device or in host memory.
    #[error("out of memory in {operation}: {message}")]
    OutOfMemory {
        /// The operation, its module and its operands' shapes.
        operation: String,
        /// First line of libtorch's message.
        message: String,
    },
    /// A loss or a gradient is infinite or not a number.
    #[error("{what} is not a finite number")]
    NotFinite {
        /// The number that was checked, and its step.
        what: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// A verb: read, write, replace …
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The data cannot be trained on or generated from.
    #[error("{0}")]
    Data(String),
    /// The configuration asks for something impossible.
    #[error("{0}")]
    Config(String),
    /// The configuration asks for a GPU that cannot be used.
    #[error(transparent)]
    Gpu(#[from] NoGpu),
    /// A base model's files are damaged or contradictory.
    #[error("{}: {message}", path.display())]
    Model { path: PathBuf, message: String },
    /// Files of an adapter or checkpoint cannot be opened. The message says which and what to do.
    #[error(transparent)]
    Files(#[from] ModelError),
    /// An adapter does not fit the base model or is damaged. All problems at once.
    #[error("the adapter {} does not fit: {}", path.display(), listed(problems))]
    Adapter {
        path: PathBuf,
        /// One sentence each.
        problems: Vec<String>,
    },
    /// The device is missing or failed. After such an error this process cannot continue to use it.
    #[error("{0}")]
    Device(String),
    /// libtorch refused an operation: a defect of Luthier.
    #[error("libtorch failed in {operation}: {message}")]
    Torch {
        /// The operation, its module and its operands' shapes.
        operation: String,
        /// First line of libtorch's message.
        message: String,
    },
}

impl EngineError {
    /// Classifies libtorch's message about a failed operation. Only this function reads libtorch's messages.
    pub fn torch(operation: impl Into<String>, text: &str) -> Self {
        const MEMORY: [&str; 6] = [
            "CUDNN_STATUS_ALLOC_FAILED",
            "out of memory",
            "can't allocate memory",
            "not enough memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "bad_alloc",
        ];
        const DEVICE: [&str; 10] = [
            "CUDA error",
            "CUDA driver error",
            "CUBLAS_STATUS_",
            "CUDNN_STATUS_",
            "cuDNN",
            "NVRTC",
            "nvrtc",
            "device-side assert",
            "NCCL error",
            "no NVIDIA driver",
        ];
        let operation = operation.into();
        let message = luthier_core::text::clean_line(text.lines().next().unwrap_or_default()).into_owned();
        if MEMORY.iter().any(|sign| text.contains(sign)) {
            Self::OutOfMemory { operation, message }
        } else if DEVICE.iter().any(|sign| text.contains(sign)) {
            Self::Device(format!("the device failed in {operation}: {message}"))
        } else {
            Self::Torch { operation, message }
        }
    }

    /// Operands of `operation` that do not match.
    pub fn mismatch(operation: &str, operands: &[&Tensor], message: &str) -> Self {
        Self::torch(describe(operation, operands), message)
    }

    /// Adds the module in which the error happened.
    #[must_use]
    pub fn within(mut self, module: &str) -> Self {
        if let Self::OutOfMemory { operation, .. } | Self::Torch { operation, .. } = &mut self {
            *operation = format!("{operation} of {module}");
        }
        self
    }

    /// Failure class of a run that ends with this error.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::OutOfMemory { .. } => FailureClass::Oom,
            Self::NotFinite { .. } => FailureClass::Nan,
            Self::Data(_) => FailureClass::Data,
            Self::File { .. } | Self::Files(ModelError::Read { .. }) => FailureClass::Disk,
            Self::Config(_) | Self::Files(_) | Self::Model { .. } | Self::Adapter { .. } => {
                FailureClass::Config
            }
            Self::Device(_) | Self::Gpu(_) => FailureClass::Device,
            Self::Torch { .. } => FailureClass::Bug,
        }
    }

    /// What must come about before the disk takes what it refused: see [`awaited`].
    pub fn awaited(&self) -> Option<&'static str> {
        match self {
            Self::File { source, .. } => awaited(source),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::OutOfMemory { .. } => {
                "lower train.batch_size (and raise train.accumulate to keep the step the same), lower \
                 data.max_length, or set train.recompute = \"on\""
            }
            Self::NotFinite { .. } => "lower train.learning_rate, or set train.on_nan = \"skip\"",
            Self::File { .. } => "check that the path exists, may be used and has space left",
            Self::Files(_) => "use other files, or download these again",
            Self::Data(_) => "run `luthier data check`",
            Self::Config(_) => "correct luthier.toml and start a new run",
            Self::Gpu(_) => "`luthier doctor` says what this machine offers",
            Self::Model { .. } => "download the base model again, then run `luthier model verify`",
            Self::Adapter { .. } => "use the base model that the adapter was trained on",
            Self::Device(_) => {
                "run `luthier doctor`, which says what this machine offers; a run can be resumed from its last checkpoint"
            }
            Self::Torch { .. } => "this is a defect of Luthier; please report it with engine.log",
        }
    }
}

/// Most problems that are listed; the rest are counted.
const MAX_LISTED: usize = 20;

fn listed(problems: &[String]) -> String {
    let named = problems.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(MAX_LISTED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

/// An operation with the types and shapes of its operands.
pub(crate) fn describe(operation: &str, operands: &[&Tensor]) -> String {
    let shapes: Vec<String> =
        operands.iter().map(|tensor| format!("{:?} {:?}", tensor.kind(), tensor.size())).collect();
    if shapes.is_empty() { operation.into() } else { format!("{operation} ({})", shapes.join(", ")) }
}

/// Classifies a failure of `operation`.
pub(crate) fn from_tch(operation: impl Into<String>, error: &TchError) -> EngineError {
    match error {
        TchError::Torch(text) => EngineError::torch(operation, text),
        other => EngineError::torch(operation, &other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_texts_are_sorted() {
        let cases = [
            ("CUDA out of memory. Tried to allocate 2.00 GiB.", FailureClass::Oom),
            ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", FailureClass::Oom),
            ("CUDA error: an illegal memory access was encountered", FailureClass::Device),
            ("CUBLAS_STATUS_ALLOC_FAILED when calling", FailureClass::Oom),
            ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", FailureClass::Bug),
        ];
        for (text, class) in cases {
            assert_eq!(EngineError::torch("linear", text).class(), class, "{text}");
        }
    }

    #[test]
    fn only_the_first_line_is_kept_and_cleaned() {
        let error = EngineError::torch("linear [2, 3]", "bad\u{1b}[31m shapes\nC++ stack").within("lm_head");
        let text = error.to_string();
        assert!(text.starts_with("libtorch failed in linear [2, 3] of lm_head: bad"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains("stack"), "{text}");
    }

    #[test]
    fn an_impossible_allocation_is_out_of_memory() {
        let result = Tensor::f_zeros([1_i64 << 55], (tch::Kind::Float, tch::Device::Cpu));
        let error = from_tch("zeros", &result.err().unwrap());
        assert_eq!(error.class(), FailureClass::Oom, "{error}");
    }
}
