//! Measures training and generation speed of this machine, for `make bench` and `make gpu-check`.

mod generate;
mod plan;
mod profile;
mod rows;
mod train;

use std::path::PathBuf;
use std::time::Instant;

use luthier_core::config::{Device as ConfigDevice, Dtype, MethodKind};
use luthier_core::model::Quantisation;
use serde::Serialize;
use tch::{Device, Kind};

pub use generate::{AnswerFigures, GenerateFigures};
pub use plan::{Answers, Generate, Rows, Train, Work, read};
pub use profile::{Line, Profile};
pub use train::TrainFigures;

use crate::error::Result;
use crate::methods::method_of;
use crate::models::Model;
use crate::process::{forget_peak_memory, peak_memory};
use crate::step::adamw;
use crate::trials::{self, Missing};
use crate::{csrc, device, ops};
use rows::Prepared;

/// Works, and what they have in common.
#[derive(Debug, Clone)]
pub struct Bench {
    pub base: Base,
    pub dtype: Dtype,
    pub device: ConfigDevice,
    pub works: Vec<Work>,
}

/// What is trained and answers.
#[derive(Debug, Clone)]
pub enum Base {
    /// Model folder or GGUF file.
    Model(PathBuf),
    /// A project's folder: its model, with the method, rows, order, packing and steps of its `luthier.toml`.
    Project(PathBuf),
}

/// The measurements of one work.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `Float`, `BFloat16`.
    pub dtype: String,
    /// Time to load the weights, for all works that use these. If all weights are trained, only these are loaded.
    pub load_seconds: f64,
    /// Bytes of the weights; for mapped weights, in their file.
    pub weight_bytes: u64,
    pub train: Option<TrainFigures>,
    pub decode: Option<GenerateFigures>,
    #[serde(flatten)]
    pub peaks: Peaks,
    /// What a GPU has computed in more steps than others so far.
    pub slower: Vec<Missing>,
}

/// Highest memory use of a work so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Peaks {
    /// Resident memory of the process. Where the system cannot forget a peak, that of earlier works too.
    pub peak_memory_bytes: u64,
    /// Memory of tensors on the device.
    pub peak_device_memory_bytes: Option<i64>,
}

impl Peaks {
    /// Since [`Peaks::forget`].
    fn now(device: Device) -> Result<Self> {
        let peak_device_memory_bytes = match device {
            Device::Cuda(index) => Some(csrc::device_memory(index)?.peak),
            _ => None,
        };
        Ok(Self { peak_memory_bytes: peak_memory(), peak_device_memory_bytes })
    }

    /// Begins again from what is in use, and returns unused memory to the device.
    fn forget(device: Device) -> Result<()> {
        forget_peak_memory();
        if let Device::Cuda(index) = device {
            csrc::release_device_memory(index)?;
        }
        Ok(())
    }

    fn highest(self, other: Self) -> Self {
        Self {
            peak_memory_bytes: self.peak_memory_bytes.max(other.peak_memory_bytes),
            peak_device_memory_bytes: self.peak_device_memory_bytes.max(other.peak_device_memory_bytes),
        }
    }
}

/// Measures every work, those over the same weights one after the other, and calls `done` with its figures, or with the
/// reason why there are none. An error is returned if no work can be measured at all.
pub fn bench(bench: &Bench, done: &mut dyn FnMut(&Work, Result<Figures>)) -> Result<()> {
    let device = device::choose(bench.device)?;
    let kind = device::compute_kind(bench.dtype, device);
    let mut prepared = Vec::new();
    for work in &bench.works {
        match Prepared::of(work, bench) {
            Ok(rows) => prepared.push((work, rows)),
            Err(error) => done(work, Err(error)),
        }
    }
    let mut bed = Bed { device, kind, loaded: None };
    for (work, prepared) in together(prepared, |(_, prepared)| Weights::of(prepared)) {
        done(work, bed.measure(work, &prepared));
    }
    Ok(())
}

/// Items with equal keys next to one another, in the order in which each key comes first.
fn together<T, K: PartialEq>(items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut groups: Vec<(K, Vec<T>)> = Vec::new();
    for item in items {
        let own = key(&item);
        match groups.iter_mut().find(|(key, _)| *key == own) {
            Some((_, group)) => group.push(item),
            None => groups.push((own, vec![item])),
        }
    }
    groups.into_iter().flat_map(|(_, group)| group).collect()
}

/// What works must have in common to share weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Weights {
    quantisation: Quantisation,
    /// Whether all of them are trained.
    full: bool,
}

impl Weights {
    fn of(prepared: &Prepared) -> Self {
        let kind = prepared.config.method.kind;
        let quantisation = Quantisation::of(kind, &prepared.files);
        Self { quantisation, full: kind == MethodKind::Full }
    }
}

/// Where works are measured, with the weights of the last one.
struct Bed {
    device: Device,
    kind: Kind,
    loaded: Option<Loaded>,
}

struct Loaded {
    weights: Weights,
    model: Model,
    seconds: f64,
}

impl Bed {
    fn measure(&mut self, work: &Work, prepared: &Prepared) -> Result<Figures> {
        let device = self.device;
        let weights = Weights::of(prepared);
        // Earlier weights give way before others are loaded.
        let kept = self.loaded.take().filter(|loaded| loaded.weights == weights);
        Peaks::forget(device)?;
        device::prepare(&prepared.config, device)?;
        let load = || Model::load(&prepared.files, device, self.kind, weights.quantisation);
        if weights.full && self.kind == Kind::BFloat16 {
            adamw::try_fused_update(device)?;
        }
        let began = Instant::now();
        let loaded = if let Some(loaded) = kept {
            loaded
        } else {
            let model = if weights.full && work.train.is_some() {
                // As in a run: what is trained is read from the files.
                Model::without_weights(&prepared.files, device, self.kind)?
            } else {
                load()?
            };
            Loaded { weights, model, seconds: began.elapsed().as_secs_f64() }
        };
        let Loaded { mut model, seconds: mut load_seconds, .. } = loaded;
        let mut weight_bytes = model.weight_bytes();
        let mut train = |train: &Train| {
            let adapter = method_of(&prepared.config).create(&model, 0)?;
            if weights.full {
                load_seconds = began.elapsed().as_secs_f64();
                weight_bytes = adapter.parameters().values().map(ops::bytes_of).sum();
            }
            train::measure(train, prepared, &model, adapter.as_ref())
        };
        let train = work.train.as_ref().map(&mut train).transpose();
        if weights.full && matches!(train, Ok(Some(_))) && work.generate.is_some() {
            model = load()?;
        }
        let decode = work.generate.as_ref().filter(|_| train.is_ok());
        let decode = decode.map(|wanted| generate::measure(wanted, prepared, &model)).transpose();
        // Kept for the next work, also if this one failed.
        if !weights.full {
            self.loaded = Some(Loaded { weights, model, seconds: load_seconds });
        }
        let (train, decode) = (train?, decode?);
        let parts = [train.as_ref().map(|part| part.peaks), decode.as_ref().map(|part| part.answer.peaks)];
        Ok(Figures {
            device: device::name(device),
            dtype: format!("{:?}", self.kind),
            load_seconds,
            weight_bytes,
            peaks: parts.into_iter().flatten().fold(Peaks::now(device)?, Peaks::highest),
            train,
            decode,
            slower: trials::missing(),
        })
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::config::MethodKind::{Full, Lora, Prefix, Qlora};

    use super::*;
    use crate::testing::model;

    fn work(method: MethodKind) -> Work {
        let train = Train {
            rows: Rows::Equal { batch: 1, length: 6 },
            steps: 1,
            warm_up: 0,
            recompute: false,
            profile: false,
            rows_to: None,
        };
        Work { name: method.name().into(), method, rank: 2, train: Some(train), generate: None }
    }

    #[test]
    fn works_over_the_same_weights_come_together() {
        let works = [Lora, Qlora, Full, Prefix, Qlora].map(work).to_vec();
        let wanted =
            Bench { base: Base::Model(model()), dtype: Dtype::F32, device: ConfigDevice::Cpu, works };
        let mut found = Vec::new();
        bench(&wanted, &mut |work, figures| {
            let figures = figures.unwrap();
            found.push((work.method, figures.load_seconds, figures.weight_bytes));
        })
        .unwrap();
        let methods: Vec<MethodKind> = found.iter().map(|&(method, ..)| method).collect();
        assert_eq!(methods, [Lora, Prefix, Qlora, Qlora, Full]);
        let loads: Vec<u64> = found.iter().map(|&(_, seconds, _)| seconds.to_bits()).collect();
        assert!(loads[0] == loads[1] && loads[2] == loads[3], "each base is loaded once: {loads:?}");
        assert!(loads[1] != loads[2] && loads[3] != loads[4], "{loads:?}");
        assert!(found[2].2 < found[0].2 && found[4].2 == found[0].2, "{found:?}");
    }

    #[test]
    fn groups_keep_the_order_of_their_first() {
        assert_eq!(together(vec![3, 8, 1, 6, 5, 2], |number| number % 2), [3, 1, 5, 8, 6, 2]);
        assert_eq!(together(Vec::<u8>::new(), |&number| number), [] as [u8; 0]);
    }
}
