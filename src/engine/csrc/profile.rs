//! Recording which operations run, with libtorch's profiler.

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;

use tch::Device;

use super::{checked, luthier_profile_start, luthier_profile_stop};
use crate::error::Result;

/// One piece of work that a device did: on CUDA a kernel or a copy, on a processor an operation, which may be within
/// another of the same thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// As libtorch or a library of the device gives it.
    pub name: String,
    /// Nanoseconds of one clock.
    pub start: u64,
    /// The same.
    pub end: u64,
    /// The thread that did it; on CUDA of no meaning.
    pub thread: u64,
}

impl Operation {
    /// How long it took.
    pub fn nanoseconds(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// What [`luthier_profile_stop`] calls for each event.
pub(super) type Note = extern "C" fn(*mut c_void, *const c_char, usize, u64, u64, u64);

/// A recording that has begun. Dropping it ends it.
#[derive(Debug)]
pub struct Profiler {
    cuda: bool,
    running: bool,
    /// The profiler belongs to the thread that started it.
    thread: PhantomData<*const ()>,
}

impl Profiler {
    /// Begins to record the work of `device`.
    pub fn start(device: Device) -> Result<Self> {
        let cuda = device.is_cuda();
        // SAFETY: plain call without pointers.
        checked("profile", unsafe { luthier_profile_start(c_int::from(cuda)) })?;
        Ok(Self { cuda, running: true, thread: PhantomData })
    }

    /// Waits for the work that was launched, and returns all that was recorded, in no order.
    pub fn stop(mut self) -> Result<Vec<Operation>> {
        self.end()
    }

    fn end(&mut self) -> Result<Vec<Operation>> {
        let mut operations: Vec<Operation> = Vec::new();
        if std::mem::take(&mut self.running) {
            let owner = (&raw mut operations).cast();
            // SAFETY: `operations` lives until the call has returned, and only this thread's calls of `note` write it.
            checked("profile", unsafe { luthier_profile_stop(c_int::from(self.cuda), note, owner) })?;
        }
        Ok(operations)
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("the profiler could not be stopped: {error}");
        }
    }
}

extern "C" fn note(
    owner: *mut c_void,
    name: *const c_char,
    length: usize,
    start: u64,
    end: u64,
    thread: u64,
) {
    // SAFETY: `owner` is the list of the `Profiler::end` that is running; `name` is `length` bytes that live for this
    // call.
    let (operations, name) = unsafe {
        (&mut *owner.cast::<Vec<Operation>>(), std::slice::from_raw_parts(name.cast::<u8>(), length))
    };
    operations.push(Operation { name: String::from_utf8_lossy(name).into_owned(), start, end, thread });
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn operations_are_recorded_while_a_profiler_runs() {
        let x = Tensor::ones([64, 64], (Kind::Float, Device::Cpu));
        let names = |profiler: Profiler| -> Vec<String> {
            profiler.stop().unwrap().into_iter().map(|operation| operation.name).collect()
        };
        let profiler = Profiler::start(Device::Cpu).unwrap();
        let _ = x.matmul(&x);
        let operations = profiler.stop().unwrap();
        let product = operations.iter().find(|operation| operation.name == "aten::matmul").unwrap();
        let inner = operations.iter().find(|operation| operation.name == "aten::mm").unwrap();
        assert!(product.start <= inner.start && inner.end <= product.end && product.start < product.end);
        assert_eq!(product.thread, inner.thread);

        // One that is dropped leaves nothing behind.
        drop(Profiler::start(Device::Cpu).unwrap());
        let profiler = Profiler::start(Device::Cpu).unwrap();
        let _ = x.exp();
        let found = names(profiler);
        assert!(
            found.contains(&"aten::exp".to_owned()) && !found.contains(&"aten::mm".to_owned()),
            "{found:?}"
        );
    }
}
