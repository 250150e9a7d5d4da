//! How the weights of a base model are held in memory, and their size.

use std::collections::HashSet;

use super::ModelFiles;
use crate::config::MethodKind;

/// Elements of an NF4 matrix that share a scale (arXiv 2305.14314, section 3).
pub const NF4_BLOCK: usize = 64;

/// Scales of an NF4 matrix that share a second-level scale (double quantisation, same section).
pub const NF4_SCALES: usize = 256;

/// How the linear layers of a model's blocks are held. Embedding, head, norms and biases are always dense, as
/// in bitsandbytes and PEFT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantisation {
    /// Dense, in the compute dtype.
    None,
    /// Encoded to NF4 with double quantisation at loading.
    Nf4,
    /// In the block format of the file; weights that are not quantised in the file stay dense.
    AsStored,
}

/// The size of a model under a [`Quantisation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Elements that are held dense.
    pub dense: u64,
    /// Bytes of all other elements.
    pub quantised: u64,
    /// Elements of the largest matrix that is decoded for a product.
    pub largest_decoded: u64,
}

impl Quantisation {
    /// The quantisation for a method. For QLoRA, blocks that are quantised in the file stay as they are;
    /// others become NF4.
    pub fn of(method: MethodKind, files: &ModelFiles) -> Self {
        if method != MethodKind::Qlora {
            return Self::None;
        }
        let linear = block_weights(files);
        let quantised =
            files.tensors.iter().any(|(name, entry)| linear.contains(name) && entry.storage.is_quantised());
        if quantised { Self::AsStored } else { Self::Nf4 }
    }

    /// The size of the model's weights.
    pub fn held(self, files: &ModelFiles) -> Held {
        let linear = block_weights(files);
        let mut held = Held::dense(0);
        for (name, entry) in &files.tensors {
            let quantised = match self {
                Self::Nf4 if linear.contains(name) => nf4_bytes(entry.elements()),
                Self::AsStored if linear.contains(name) && entry.storage.is_quantised() => entry.bytes,
                _ => {
                    held.dense += entry.elements();
                    continue;
                }
            };
            held.quantised += quantised;
            held.largest_decoded = held.largest_decoded.max(entry.elements());
        }
        held
    }
}

impl Held {
    /// This many elements, all dense.
    pub const fn dense(elements: u64) -> Self {
        Self { dense: elements, quantised: 0, largest_decoded: 0 }
    }

    /// Total bytes, if a dense element takes `element` bytes.
    pub const fn bytes(&self, element: u64) -> u64 {
        self.dense.saturating_mul(element).saturating_add(self.quantised)
    }
}

/// Bytes of a matrix with this many elements in NF4: half a byte each, one byte for every block's scale, and
/// for these an f32 scale for every 256 and one f32 offset.
pub const fn nf4_bytes(elements: u64) -> u64 {
    let scales = elements.div_ceil(NF4_BLOCK as u64);
    elements.div_ceil(2) + scales + 4 * scales.div_ceil(NF4_SCALES as u64) + 4
}

/// Names of the weights of the blocks' linear layers.
fn block_weights(files: &ModelFiles) -> HashSet<String> {
    let in_block = files.linear_modules().into_iter().filter(|module| module.layer.is_some());
    in_block.map(|module| format!("{}.weight", module.name)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Storage;

    fn tiny() -> ModelFiles {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/references/tiny/llama");
        ModelFiles::open(Path::new(path)).unwrap()
    }

    #[test]
    fn nf4_takes_a_little_more_than_half_a_byte() {
        assert_eq!(nf4_bytes(64), 32 + 1 + 4 + 4);
        assert_eq!(nf4_bytes(33), 17 + 1 + 4 + 4);
        let million = 1 << 20;
        assert_eq!(nf4_bytes(million), million / 2 + million / 64 + 4 * million / 64 / 256 + 4);
    }

    #[test]
    fn only_qlora_quantises_and_it_keeps_quantised_files() {
        let mut files = tiny();
        assert_eq!(Quantisation::of(MethodKind::Lora, &files), Quantisation::None);
        assert_eq!(Quantisation::of(MethodKind::Qlora, &files), Quantisation::Nf4);
        let entry = files.tensors.get_mut("model.embed_tokens.weight").unwrap();
        entry.storage = Storage::Q8_0;
        assert_eq!(Quantisation::of(MethodKind::Qlora, &files), Quantisation::Nf4);
        let entry = files.tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap();
        entry.storage = Storage::Q8_0;
        assert_eq!(Quantisation::of(MethodKind::Lora, &files), Quantisation::None);
        assert_eq!(Quantisation::of(MethodKind::Qlora, &files), Quantisation::AsStored);
    }

    #[test]
    fn weights_outside_of_blocks_stay_dense() {
        let mut files = tiny();
        let all = files.parameters();
        assert_eq!(Quantisation::None.held(&files), Held::dense(all));
        let linear: u64 = block_weights(&files).iter().map(|name| files.tensors[name].elements()).sum();
        let held = Quantisation::Nf4.held(&files);
        assert_eq!((held.dense, held.largest_decoded), (all - linear, 64 * 128));
        assert!(
            held.bytes(2) > 2 * held.dense + linear / 2 && held.bytes(2) < 2 * held.dense + linear * 6 / 10
        );

        let entry = files.tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap();
        (entry.storage, entry.bytes) = (Storage::Q8_0, 64 * 128 / 32 * 34);
        let held = Quantisation::AsStored.held(&files);
        let expected =
            Held { dense: all - 64 * 128, quantised: 64 * 128 / 32 * 34, largest_decoded: 64 * 128 };
        assert_eq!(held, expected);
    }
}
