//! Where a step's time goes, as the device counts it.

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

/// Marks between the phases of a step, put where the device was given its work.
#[derive(Debug)]
pub(super) struct Marks {
    device: Device,
    /// Before each micro-batch, between its forward and its backward, and after the last one.
    micro_batches: Vec<Event>,
    end: Option<Event>,
}

impl Marks {
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self { device, micro_batches: vec![Event::record(device)?], end: None })
    }

    /// A forward or a backward was given to the device, in turn.
    pub fn half(&mut self) -> Result<()> {
        self.micro_batches.push(Event::record(self.device)?);
        Ok(())
    }

    /// The whole step was.
    pub fn end(&mut self) -> Result<()> {
        self.end = Some(Event::record(self.device)?);
        Ok(())
    }

    /// Waits until the device has done it all.
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
        let busy = || {
            let since = std::time::Instant::now();
            while since.elapsed().as_micros() < 200 {}
        };
        let whole = std::time::Instant::now();
        for _ in 0..4 {
            busy();
            marks.half().unwrap();
        }
        marks.end().unwrap();
        let whole = whole.elapsed().as_secs_f64();
        let Phases { forward, backward, update } = marks.phases().unwrap();
        assert!(forward >= 400e-6 && backward >= 400e-6 && update >= 0.0, "{forward} {backward} {update}");
        assert!(forward + backward + update <= whole + 1e-3);
    }
}
