//! Reads tensors from mapped model files, as the compute type, on the device.

use std::cell::Cell;
use std::fs::File;
use std::sync::Arc;

use luthier_core::model::{Arrangement, ModelFiles, Quantisation, Storage, TensorEntry};
use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

use super::dequantise::decode;
use super::matrix::{Dense, Weight};
use super::nf4;
use super::quantised::{Nf4, Stored, Tables};
use super::tried;
use crate::error::{EngineError, Result};
use crate::{csrc, ops};

/// Reads the tensors of one base model.
pub struct Loader<'a> {
    files: &'a ModelFiles,
    maps: Vec<Arc<Mmap>>,
    device: Device,
    kind: Kind,
    quantiser: Quantiser,
    numbered: usize,
    bytes: Cell<u64>,
}

/// A [`Quantisation`] with the state that it needs.
enum Quantiser {
    None,
    Nf4(Tables),
    AsStored,
    /// Tensors have shapes but no numbers.
    Absent,
}

impl<'a> Loader<'a> {
    /// Maps the model's files, without reading tensors.
    pub fn open(
        files: &'a ModelFiles,
        device: Device,
        kind: Kind,
        quantisation: Quantisation,
    ) -> Result<Self> {
        let maps = files
            .files
            .iter()
            .map(|path| {
                let failed = |source| EngineError::File { action: "read", path: path.clone(), source };
                csrc::map(&File::open(path).map_err(failed)?).map_err(failed)
            })
            .collect::<Result<_>>()?;
        tried::try_kernels(quantisation, device)?;
        let quantiser = match quantisation {
            Quantisation::None => Quantiser::None,
            Quantisation::Nf4 => Quantiser::Nf4(Tables::new(device)?),
            Quantisation::AsStored => Quantiser::AsStored,
        };
        Ok(Self { files, maps, device, kind, quantiser, numbered: 0, bytes: Cell::new(0) })
    }

    /// Reads nothing: every tensor has its shape, but its elements are not numbers and take no memory.
    pub fn absent(files: &'a ModelFiles, device: Device, kind: Kind) -> Self {
        let quantiser = Quantiser::Absent;
        Self { files, maps: Vec::new(), device, kind, quantiser, numbered: 0, bytes: Cell::new(0) }
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The tensor with this Hugging Face name, as the compute type on the device. It must never be written
    /// to.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        if matches!(self.quantiser, Quantiser::Absent) {
            let shape: Vec<i64> = self.entry(name)?.shape.iter().map(|&length| length as i64).collect();
            return ops::nothing(&shape, self.kind, self.device);
        }
        let restored = self.restored(name)?;
        let tensor = if restored.kind().elt_size_in_bytes() < self.kind.elt_size_in_bytes() {
            // Uploaded in the file's type, which is smaller.
            ops::to_kind(&ops::to_device(&restored, self.device)?, self.kind)?
        } else {
            ops::to_device(&ops::to_kind(&restored, self.kind)?, self.device)?
        };
        self.count(ops::bytes_of(&tensor));
        Ok(tensor)
    }

    /// The matrix with this Hugging Face name, in the form that the quantisation gives.
    pub fn matrix(&self, name: &str) -> Result<Weight> {
        match self.quantised(name)? {
            Some(weight) => Ok(weight),
            None => self.dense_matrix(name),
        }
    }

    /// As [`Loader::matrix`], but always dense.
    pub fn dense_matrix(&self, name: &str) -> Result<Weight> {
        let elements = self.tensor(name)?;
        let beside = self.device == Device::Cpu && !matches!(self.quantiser, Quantiser::Absent);
        let stored = if beside { self.stored(name)?.filter(Stored::can_multiply) } else { None };
        Ok(Weight::Dense(Dense::new(elements, stored)))
    }

    /// Rows and columns of a matrix.
    pub fn features(&self, name: &str) -> Result<[usize; 2]> {
        match self.entry(name)?.shape[..] {
            [out_features, in_features] => Ok([out_features, in_features]),
            _ => Err(self.damaged(format!("{name} is not a matrix"))),
        }
    }

    /// Numbers the layers of the model being loaded, from 0.
    pub fn next_number(&mut self) -> usize {
        self.numbered += 1;
        self.numbered - 1
    }

    /// Bytes of all returned tensors. For those that stay mapped, bytes in their file.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    fn count(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// A matrix in quantised form; `None` if the quantisation keeps it dense.
    fn quantised(&self, name: &str) -> Result<Option<Weight>> {
        let weight = match &self.quantiser {
            Quantiser::None | Quantiser::Absent => return Ok(None),
            Quantiser::Nf4(tables) => {
                let encoded = self.encoded(name, tables)?.ok_or_else(|| {
                    self.damaged(format!("tensor {name} contains numbers that are not finite"))
                })?;
                let entry = self.entry(name)?;
                csrc::release_pages(self.map(name, entry)?, entry.offset as usize, entry.bytes as usize);
                Weight::Nf4(encoded)
            }
            Quantiser::AsStored => match self.stored(name)?.filter(Stored::is_quantised) {
                Some(stored) => Weight::Stored(stored.on(self.device)?),
                None => return Ok(None),
            },
        };
        self.count(weight.bytes());
        Ok(Some(weight))
    }

    /// A matrix in NF4; `None` if an element is not finite.
    fn encoded(&self, name: &str, tables: &Tables) -> Result<Option<Nf4>> {
        let (restored, features) = (self.restored(name)?, self.features(name)?);
        let single = |x: &Tensor| ops::contiguous(&ops::to_kind(x, Kind::Float)?);
        if csrc::has_program(csrc::Program::Nf4, self.device) {
            // In the file's type, which is smaller.
            return Nf4::encoded(&single(&ops::to_device(&restored, self.device)?)?, features, tables);
        }
        let encoded = csrc::with_floats(&single(&restored)?, nf4::encode)?;
        encoded.map(|encoded| Nf4::new(&encoded, features, tables, self.device)).transpose()
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry> {
        self.files.tensors.get(name).ok_or_else(|| self.damaged(format!("tensor {name} is missing")))
    }

    fn map(&self, name: &str, entry: &TensorEntry) -> Result<&Arc<Mmap>> {
        self.maps.get(entry.file).ok_or_else(|| self.damaged(format!("tensor {name} lies outside its file")))
    }

    /// Its place in the file; `None` if it is not a matrix there.
    fn stored(&self, name: &str) -> Result<Option<Stored>> {
        let entry = self.entry(name)?;
        Ok(Stored::new(self.map(name, entry)?, entry))
    }

    /// As f32, f16 or bf16 on the CPU, in the architecture's layout.
    fn restored(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        restore(self.decoded(name, entry)?, entry.arrangement)
    }

    /// As f32, f16 or bf16 in the file's layout, directly over the map if possible.
    fn decoded(&self, name: &str, entry: &TensorEntry) -> Result<Tensor> {
        let missing = || self.damaged(format!("tensor {name} lies outside its file"));
        let map = self.map(name, entry)?;
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

/// Converts elements to the architecture's order.
pub(super) fn restore(stored: Tensor, arrangement: Arrangement) -> Result<Tensor> {
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
    fn a_transposed_weight_is_transposed_back() {
        let stored = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
        let restored = restore(stored.shallow_clone(), Arrangement::Transposed).unwrap();
        assert!(restored.is_contiguous());
        assert_eq!(restored, stored.tr());
    }
}
