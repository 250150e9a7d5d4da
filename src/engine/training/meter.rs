//! A step's use of the machine: memory, and how busy the device is.

use std::time::{Duration, Instant};

use luthier_core::machine::{self, Gpus};
use tch::Device;

use crate::{csrc, device};

/// The driver is asked at most this often; in between, the last answer is used.
const DRIVER_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// Resident memory of this process.
    pub memory_bytes: u64,
    /// Memory that tensors use on the device, if it is not the CPU.
    pub device_memory_bytes: Option<u64>,
    /// How busy the device was since the last reading, 0 to 1.
    pub load: Option<f64>,
}

pub struct Meter {
    device: Device,
    gpus: Option<Gpus>,
    /// Of the GPU.
    uuid: Option<String>,
    cores: f64,
    cpu_seconds: f64,
    since: Instant,
    /// When the driver was asked last, and its answer.
    driver: (Option<Instant>, Option<f64>),
}

impl Meter {
    pub fn new(device: Device) -> Self {
        let gpus = if device.is_cuda() { Gpus::open() } else { None };
        let cpu_seconds = machine::own_process().map_or(0.0, |process| process.cpu_seconds);
        let since = Instant::now();
        let uuid = device::gpu(device).and_then(|gpu| gpu.uuid);
        let cores = machine::cores() as f64;
        Self { device, gpus, uuid, cores, cpu_seconds, since, driver: (None, None) }
    }

    pub fn read(&mut self) -> Reading {
        let process = machine::own_process();
        let now = Instant::now();
        let cpu_seconds = process.map_or(self.cpu_seconds, |process| process.cpu_seconds);
        let wall = now.duration_since(self.since).as_secs_f64();
        let busy = (cpu_seconds - self.cpu_seconds) / (wall * self.cores).max(f64::EPSILON);
        (self.cpu_seconds, self.since) = (cpu_seconds, now);
        let memory_bytes = process.map_or(0, |process| process.resident_bytes);
        match self.device {
            Device::Cuda(index) => Reading {
                memory_bytes,
                device_memory_bytes: csrc::device_memory(index)
                    .ok()
                    .map(|memory| memory.allocated.max(0) as u64),
                load: self.driver_load(now),
            },
            _ => Reading { memory_bytes, device_memory_bytes: None, load: Some(busy.clamp(0.0, 1.0)) },
        }
    }

    /// How busy the driver says the GPU is.
    fn driver_load(&mut self, now: Instant) -> Option<f64> {
        let (read, load) = self.driver;
        if read.is_some_and(|read| now.duration_since(read) < DRIVER_INTERVAL) {
            return load;
        }
        let uuid = self.uuid.as_ref()?;
        let gpus = self.gpus.as_ref()?.read();
        let gpu = gpus.into_iter().find(|gpu| gpu.uuid.as_ref() == Some(uuid));
        let load = gpu.and_then(|gpu| gpu.load_percent).map(|percent| f64::from(percent) / 100.0);
        self.driver = (Some(now), load);
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_load_of_this_process_are_read() {
        let mut meter = Meter::new(Device::Cpu);
        let reading = meter.read();
        assert!(reading.memory_bytes > 1 << 20);
        assert_eq!(reading.device_memory_bytes, None);
        assert!(reading.load.is_some_and(|load| (0.0..=1.0).contains(&load)));
    }
}
