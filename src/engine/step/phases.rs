//! How long each phase of a step takes, measured on the device.

use serde::Serialize;
use tch::Device;

use crate::csrc::Event;
use crate::error::Result;

/// Seconds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Phases {
    /// Forward and loss of all micro-batches.
    pub forward: f64,
    /// Their gradients.
    pub backward: f64,
    /// Norm, clipping and the optimizer's update.
    pub update: f64,
}

/// Events between the phases of a step, recorded when the work is launched.
#[derive(Debug)]
pub(super) struct Marks {
    device: Device,
    /// Before each micro-batch, between its forward and backward, and after the last one.
    micro_batches: Vec<Event>,
    end: Option<Event>,
}

impl Marks {
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self { device, micro_batches: vec![Event::record(device)?], end: None })
    }

    /// A forward, and then its backward, was launched.
    pub fn next(&mut self) -> Result<()> {
        self.micro_batches.push(Event::record(self.device)?);
        Ok(())
    }

    /// The whole step was launched.
    pub fn end(&mut self) -> Result<()> {
        self.end = Some(Event::record(self.device)?);
        Ok(())
    }

    /// Waits until the device has done the step's work, but not for later work.
    pub fn wait(&self) -> Result<()> {
        self.end.as_ref().map_or(Ok(()), Event::wait)
    }

    /// The duration of each phase. Waits as [`Marks::wait`] does.
    pub fn phases(&self) -> Result<Phases> {
        let mut phases = Phases::default();
        for (index, pair) in self.micro_batches.windows(2).enumerate() {
            let seconds = pair[1].seconds_since(&pair[0])?;
            if index % 2 == 0 { phases.forward += seconds } else { phases.backward += seconds }
        }
        if let (Some(last), Some(end)) = (self.micro_batches.last(), &self.end) {
            phases.update = end.seconds_since(last)?;
        }
        Ok(phases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_the_times_between_their_marks() {
        let mut marks = Marks::new(Device::Cpu).unwrap();
        let busy = |microseconds: u128| {
            let since = std::time::Instant::now();
            while since.elapsed().as_micros() < microseconds {}
        };
        for microseconds in [100, 2000, 100, 2000] {
            busy(microseconds);
            marks.next().unwrap();
        }
        busy(500);
        marks.end().unwrap();
        marks.wait().unwrap();
        let Phases { forward, backward, update } = marks.phases().unwrap();
        assert!(forward >= 200e-6 && backward >= 4e-3 && update >= 500e-6, "{forward} {backward} {update}");
        let parts: Vec<f64> =
            marks.micro_batches.windows(2).map(|pair| pair[1].seconds_since(&pair[0]).unwrap()).collect();
        assert_eq!((forward, backward), (parts[0] + parts[2], parts[1] + parts[3]));
    }
}
