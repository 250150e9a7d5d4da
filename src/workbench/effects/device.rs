//! The load of the machine, in one line for the header.

use std::thread;
use std::time::Duration;

use luthier_core::machine::{self, Gpu, Gpus};
use tokio::sync::mpsc;

use crate::app::Event;

/// Time between two looks at the GPUs.
const PAUSE: Duration = Duration::from_secs(2);

/// Interval between checks whether the workbench is closing.
const STEP: Duration = Duration::from_millis(100);

/// Posts the line now and whenever it changes, until the workbench closes.
pub(super) fn watch(events: &mpsc::Sender<Event>) {
    let events = events.clone();
    let spawned = thread::Builder::new().name("device".to_owned()).spawn(move || {
        let Some(gpus) = Gpus::open() else {
            drop(events.blocking_send(Event::Device(cpu_line(machine::cores()))));
            return;
        };
        let mut last = String::new();
        while !events.is_closed() {
            let line = gpu_line(&gpus.read()).unwrap_or_else(|| cpu_line(machine::cores()));
            if line != last {
                last.clone_from(&line);
                drop(events.blocking_send(Event::Device(line)));
            }
            for _ in 0..PAUSE.as_millis() / STEP.as_millis() {
                if events.is_closed() {
                    return;
                }
                thread::sleep(STEP);
            }
        }
    });
    if let Err(problem) = spawned {
        tracing::warn!("the load of the machine cannot be watched: {problem}");
    }
}

fn cpu_line(cores: usize) -> String {
    format!("cpu · {cores} {}", if cores == 1 { "core" } else { "cores" })
}

/// One GPU with all it says, or several with their mean load and their memory together.
fn gpu_line(gpus: &[Gpu]) -> Option<String> {
    const GIB: u64 = 1 << 30;
    let first = gpus.first()?;
    let name = first.name.trim_start_matches("NVIDIA ");
    let loads: Vec<u32> = gpus.iter().filter_map(|gpu| gpu.load_percent).collect();
    let mut parts = vec![if gpus.len() == 1 { name.to_owned() } else { format!("{}× {name}", gpus.len()) }];
    if !loads.is_empty() {
        parts.push(format!("{:>3} %", loads.iter().sum::<u32>() / loads.len() as u32));
    }
    let sum = |memory: fn(&Gpu) -> u64| gpus.iter().map(memory).sum::<u64>() / GIB;
    parts.push(format!("{}/{} GiB", sum(|gpu| gpu.memory_used), sum(|gpu| gpu.memory_total)));
    if let [gpu] = gpus {
        parts.extend(gpu.temperature.map(|temperature| format!("{temperature} °C")));
        parts.extend(gpu.power.map(|power| format!("{power:.0} W")));
    }
    Some(parts.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Gpu {
        Gpu {
            index: 0,
            slice: None,
            processes: Vec::new(),
            name: "NVIDIA H200".to_owned(),
            uuid: None,
            capability: None,
            memory_total: 139 << 30,
            memory_used: 61 << 30,
            load_percent: Some(78),
            temperature: Some(64),
            power: Some(512.4),
            power_limit: None,
        }
    }

    #[test]
    fn lines_say_what_is_known() {
        assert_eq!(gpu_line(&[gpu()]).as_deref(), Some("H200   78 %  61/139 GiB  64 °C  512 W"));
        assert_eq!(gpu_line(&[gpu(), gpu()]).as_deref(), Some("2× H200   78 %  122/278 GiB"));
        let silent = Gpu { load_percent: None, temperature: None, power: None, ..gpu() };
        assert_eq!(gpu_line(&[silent]).as_deref(), Some("H200  61/139 GiB"));
        assert_eq!(gpu_line(&[]), None);
        assert_eq!(cpu_line(1), "cpu · 1 core");
    }
}
