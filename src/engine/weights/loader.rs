//! Tensors out of mapped model files, as the compute type, on the device.

use std::fs::File;
use std::sync::Arc;

use luthier_core::model::{Arrangement, ModelFiles, Storage, TensorEntry};
use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

use super::dequantise::decode;
use super::linear::{Linear, Site, Stored, Weight};
use crate::error::{EngineError, Result};
use crate::{csrc, ops};

/// Reads the tensors of one base model.
pub struct Loader<'a> {
    files: &'a ModelFiles,
    maps: Vec<Arc<Mmap>>,
    device: Device,
    kind: Kind,
    sites: usize,
}

impl<'a> Loader<'a> {
    /// Maps the model's files; reads nothing yet.
    pub fn open(files: &'a ModelFiles, device: Device, kind: Kind) -> Result<Self> {
        let maps = files
            .files
            .iter()
            .map(|path| {
                let failed = |source| EngineError::File { action: "read", path: path.clone(), source };
                csrc::map(&File::open(path).map_err(failed)?).map_err(failed)
            })
            .collect::<Result<_>>()?;
        Ok(Self { files, maps, device, kind, sites: 0 })
    }

    /// Where tensors go.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Element type of what is loaded.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The tensor of this Hugging Face name, as the compute type on the device. Never to be written to.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.files.tensors.get(name) else {
            return Err(self.damaged(format!("tensor {name} is missing")));
        };
        let stored = self.stored(name, entry)?;
        let restored = restore(stored, entry.arrangement)?;
        ops::to_device(&ops::to_kind(&restored, self.kind)?, self.device)
    }

    /// The matrix of this Hugging Face name, ready to be multiplied with.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let dense = self.tensor(name)?;
        let on_cpu = self.device == Device::Cpu;
        let found = self.files.tensors.get(name).and_then(|entry| Some((entry, self.maps.get(entry.file)?)));
        let Some((entry, map)) = found.filter(|(entry, _)| on_cpu && csrc::can_multiply(entry.storage))
        else {
            return Ok(Weight::Dense(dense));
        };
        let paired_heads = match entry.arrangement {
            Arrangement::Plain => None,
            Arrangement::RotaryPairs { heads } => Some(heads),
            Arrangement::Transposed | Arrangement::ByPart { .. } => return Ok(Weight::Dense(dense)),
        };
        let whole_blocks = entry.shape.last().is_some_and(|&columns| {
            // What the kernels take for one block; llama.cpp's blocks are no longer.
            columns.is_multiple_of(entry.storage.block().elements.max(32))
        });
        if !whole_blocks {
            return Ok(Weight::Dense(dense));
        }
        let start = entry.offset as usize;
        let bytes = start..start + entry.bytes as usize;
        let stored = Stored { map: Arc::clone(map), bytes, storage: entry.storage, paired_heads };
        Ok(Weight::Doubled { dense, stored })
    }

    /// The next linear layer, of this module name; layers must be asked for in the order of their sites.
    pub fn linear(&mut self, module: &str, has_bias: bool) -> Result<Linear> {
        self.linear_of(module, format!("{module}.weight"), has_bias)
    }

    /// As [`Loader::linear`], with the weight of this tensor name: a tied head's is the embedding.
    pub fn linear_of(&mut self, module: &str, weight_name: String, has_bias: bool) -> Result<Linear> {
        let weight = self.weight(&weight_name)?;
        let bias = has_bias.then(|| self.tensor(&format!("{module}.bias"))).transpose()?;
        let size = weight.tensor().size();
        let [out_features, in_features] = size[..] else {
            return Err(self.damaged(format!("{weight_name} is no matrix")));
        };
        let site = Site(self.sites);
        self.sites += 1;
        let features = [out_features as usize, in_features as usize];
        Ok(Linear::new(site, module, features, weight, bias, weight_name))
    }

    /// As it is stored, in its file's arrangement, as f32, f16 or bf16; over the map itself where it can be.
    fn stored(&self, name: &str, entry: &TensorEntry) -> Result<Tensor> {
        let missing = || self.damaged(format!("tensor {name} lies outside of its file"));
        let map = self.maps.get(entry.file).ok_or_else(missing)?;
        let (start, length) = (entry.offset as usize, entry.bytes as usize);
        let bytes = start.checked_add(length).and_then(|end| map.get(start..end)).ok_or_else(missing)?;
        if entry.storage.bytes(entry.elements()) != Some(entry.bytes) {
            return Err(self.damaged(format!("tensor {name} has {length} bytes")));
        }
        let mut shape: Vec<i64> = entry.shape.iter().map(|&length| length as i64).collect();
        if entry.arrangement == Arrangement::Transposed {
            shape.reverse();
        }
        let plain = match entry.storage {
            Storage::F32 => Some(Kind::Float),
            Storage::F16 => Some(Kind::Half),
            Storage::BF16 => Some(Kind::BFloat16),
            _ => None,
        };
        if let Some(kind) = plain
            && let Some(borrowed) = csrc::borrow_map(map, start, &shape, kind)?
        {
            return Ok(borrowed);
        }
        csrc::fill::<f32>(&shape, |out| {
            decode(entry.storage, bytes, out);
            Ok(())
        })
    }

    fn damaged(&self, message: String) -> EngineError {
        EngineError::Model { path: self.files.root.clone(), message }
    }
}

/// Brings elements into the order that the architecture has.
fn restore(stored: Tensor, arrangement: Arrangement) -> Result<Tensor> {
    let size = stored.size();
    let rest: i64 = size[1..].iter().product();
    match arrangement {
        Arrangement::Plain => Ok(stored),
        Arrangement::Transposed => ops::contiguous(&ops::transpose(&stored, 0, 1)?),
        Arrangement::RotaryPairs { heads } => {
            let (rows, heads) = (size[0], heads as i64);
            let paired = ops::reshape(&stored, &[heads, rows / heads / 2, 2, rest])?;
            ops::reshape(&ops::transpose(&paired, 1, 2)?, &size)
        }
        Arrangement::ByPart { groups, shared } => {
            let (groups, shared) = (groups as i64, shared as i64);
            let width = size[0] / (groups * (shared + 2));
            let part = |heads: i64, first: i64| {
                let rows = ops::narrow(&stored, 0, groups * first * width, groups * heads * width)?;
                ops::reshape(&rows, &[groups, heads, width, rest])
            };
            let parts = [part(shared, 0)?, part(1, shared)?, part(1, shared + 1)?];
            ops::reshape(&ops::concatenate(&parts, 1)?, &size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_follows_the_arrangement_row_by_row() {
        let rows = 24;
        for arrangement in [
            Arrangement::Plain,
            Arrangement::RotaryPairs { heads: 3 },
            Arrangement::ByPart { groups: 2, shared: 4 },
            Arrangement::ByPart { groups: 4, shared: 1 },
        ] {
            let stored = Tensor::arange(rows * 5, (Kind::Float, Device::Cpu)).view([rows, 5]);
            let restored = restore(stored.shallow_clone(), arrangement).unwrap();
            for row in 0..rows {
                let source = arrangement.source_row(row as usize, rows as usize) as i64;
                assert_eq!(restored.get(row), stored.get(source), "{arrangement:?} row {row}");
            }
        }
    }

    #[test]
    fn a_transposed_weight_is_turned() {
        let stored = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
        let restored = restore(stored.shallow_clone(), Arrangement::Transposed).unwrap();
        assert!(restored.is_contiguous());
        assert_eq!(restored, stored.tr());
    }
}
