//! Ctrl-C: ends a command with status 130, unless the command handles it itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// Watches for ctrl-C from its creation to the end of the process.
pub struct Interrupts {
    ends: Arc<AtomicBool>,
    came: Arc<AtomicBool>,
}

impl Interrupts {
    /// Begins to watch; ctrl-C ends the process with status 130.
    pub fn watch() -> io::Result<Self> {
        let watched = Self { ends: Arc::new(AtomicBool::new(true)), came: Arc::new(AtomicBool::new(false)) };
        // Registered first, so that the shutdown sees the state before this ctrl-C.
        flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&watched.ends))?;
        flag::register(SIGINT, Arc::clone(&watched.came))?;
        Ok(watched)
    }

    /// From now on ctrl-C is only recorded, for [`Interrupts::came`].
    pub fn hold(&self) {
        self.ends.store(false, Ordering::SeqCst);
    }

    /// From now on ctrl-C ends the process again.
    pub fn release(&self) {
        self.came.store(false, Ordering::SeqCst);
        self.ends.store(true, Ordering::SeqCst);
    }

    /// Whether ctrl-C was pressed since the last call.
    pub fn came(&self) -> bool {
        self.came.swap(false, Ordering::SeqCst)
    }
}
