//! Work on threads of its own: answers that carry their tag, one job a slot, the newest wins.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::app::{Event, Slot, Tag};
use crate::panes::PaneId;

/// How long a worker waits before it tries a full queue again.
const RETRY: Duration = Duration::from_millis(2);

/// Interval between checks whether answers are still wanted.
const NAP: Duration = Duration::from_millis(50);

type Work = Box<dyn FnOnce() + Send>;

/// One job at a time and at most one waiting.
#[derive(Default)]
struct Lane {
    busy: bool,
    next: Option<Work>,
    newest: Arc<AtomicU64>,
}

type SharedLane = Arc<Mutex<Lane>>;

/// The lanes of all slots.
pub struct Lanes {
    handle: Handle,
    lanes: Mutex<HashMap<(PaneId, &'static str), SharedLane>>,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lanes").finish_non_exhaustive()
    }
}

impl Lanes {
    /// No lanes yet; work will run on the blocking threads of `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, lanes: Mutex::default() }
    }

    /// Where work is started.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    fn lane(&self, pane: PaneId, slot: &'static str) -> SharedLane {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry((pane, slot)).or_default())
    }
}

/// An effect about to be worked on.
pub struct Job<E> {
    worker: Worker<E>,
    handle: Handle,
    lane: Option<SharedLane>,
}

/// Posts the work's answers, and knows whether they are still wanted.
pub struct Worker<E> {
    events: mpsc::Sender<Event>,
    tag: Tag,
    wrap: fn(Tag, E) -> Event,
    newest: Arc<AtomicU64>,
}

impl<E> Clone for Worker<E> {
    fn clone(&self) -> Self {
        Self { events: self.events.clone(), tag: self.tag, wrap: self.wrap, newest: Arc::clone(&self.newest) }
    }
}

impl<E> fmt::Debug for Worker<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Worker").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl<E: Send + 'static> Job<E> {
    /// A job for the effect tagged `tag`; older ones of its slot are stale from now on.
    pub(super) fn new(
        lanes: &Lanes,
        events: &mpsc::Sender<Event>,
        pane: PaneId,
        tag: Tag,
        wrap: fn(Tag, E) -> Event,
    ) -> Self {
        let lane = match tag.slot {
            Slot::Each => None,
            Slot::Latest(name) => Some(lanes.lane(pane, name)),
        };
        let newest = lane.as_ref().map_or_else(Arc::default, |lane| {
            Arc::clone(&lane.lock().unwrap_or_else(PoisonError::into_inner).newest)
        });
        newest.store(tag.generation, Ordering::Release);
        let worker = Worker { events: events.clone(), tag, wrap, newest };
        Self { worker, handle: lanes.handle.clone(), lane }
    }

    /// The way back alone, for work that runs elsewhere: a watcher, a thread of the performer.
    pub fn into_worker(self) -> Worker<E> {
        self.worker
    }

    /// Runs `work` on a blocking thread. Of a latest-wins slot one job runs at a time: a newer one waits
    /// until the running one notices that it is stale, and replaces what waited before it.
    pub fn spawn(self, work: impl FnOnce(Worker<E>) + Send + 'static) {
        let Self { worker, handle, lane } = self;
        let events = worker.events.clone();
        let work: Work = Box::new(move || {
            // The panic hook has logged the place; the lane must go on.
            if catch_unwind(AssertUnwindSafe(|| work(worker))).is_err() {
                let problem = "a background task crashed; luthier.log has the details".to_owned();
                drop(events.try_send(Event::Fault(problem)));
            }
        });
        let Some(lane) = lane else {
            handle.spawn_blocking(work);
            return;
        };
        {
            let mut state = lane.lock().unwrap_or_else(PoisonError::into_inner);
            if state.busy {
                state.next = Some(work);
                return;
            }
            state.busy = true;
        }
        handle.spawn_blocking(move || {
            let mut work = work;
            loop {
                work();
                let mut state = lane.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(next) = state.next.take() else {
                    state.busy = false;
                    return;
                };
                work = next;
            }
        });
    }
}

impl<E> Worker<E> {
    /// Posts an answer, and waits while the queue is full. False when answers are no longer wanted: the work can
    /// stop.
    pub fn send(&self, answer: E) -> bool {
        let mut event = (self.wrap)(self.tag, answer);
        loop {
            if self.is_stale() {
                return false;
            }
            match self.events.try_send(event) {
                Ok(()) => return true,
                Err(TrySendError::Closed(_)) => return false,
                Err(TrySendError::Full(back)) => {
                    event = back;
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    /// Whether there is room for an answer now; a producer of batches goes on collecting where there is not.
    pub fn has_room(&self) -> bool {
        self.events.capacity() > 0
    }

    /// Posts what `look` finds, and again whenever that changes. Ends when answers are no longer wanted.
    pub fn watch<T: Clone + PartialEq>(
        &self,
        every: Duration,
        look: impl Fn() -> T,
        answer: impl Fn(T) -> E,
    ) {
        let mut posted = None;
        loop {
            let found = look();
            if posted.as_ref() != Some(&found) {
                posted = Some(found.clone());
                if !self.send(answer(found)) {
                    return;
                }
            }
            if !self.wait(every) {
                return;
            }
        }
    }

    /// Waits for `time`; false as soon as answers are no longer wanted.
    pub fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.is_stale() {
                return false;
            }
            std::thread::sleep(NAP);
        }
        !self.is_stale()
    }

    /// Whether work should go on.
    pub fn wanted(&self) -> ControlFlow<()> {
        if self.is_stale() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Whether a newer effect took this one's place, or the workbench is closing.
    pub fn is_stale(&self) -> bool {
        self.newest.load(Ordering::Acquire) != self.tag.generation || self.events.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as channel;

    use super::*;

    fn tag(generation: u64) -> Tag {
        Tag { slot: Slot::Latest("row"), generation }
    }

    fn wrap(_: Tag, line: String) -> Event {
        Event::Device(line)
    }

    #[test]
    fn the_newest_job_wins_and_only_one_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let lanes = Lanes::new(runtime.handle().clone());
        let (events, mut received) = mpsc::channel(8);
        let (started, has_started) = channel::channel();
        let first = Job::new(&lanes, &events, PaneId::Data, tag(1), wrap);
        first.spawn(move |worker| {
            started.send(()).unwrap();
            while !worker.is_stale() {
                std::thread::yield_now();
            }
            assert!(!worker.send("first".into()));
        });
        has_started.recv().unwrap();
        for generation in 2..=5 {
            let job = Job::new(&lanes, &events, PaneId::Data, tag(generation), wrap);
            job.spawn(move |worker| {
                worker.send(generation.to_string());
            });
        }
        drop(events);
        let mut all = Vec::new();
        while let Some(Event::Device(line)) = received.blocking_recv() {
            all.push(line);
        }
        assert_eq!(all.last().map(String::as_str), Some("5"));
        assert!(!all.contains(&"first".to_owned()));
    }

    #[test]
    fn a_panic_does_not_block_the_lane() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let lanes = Lanes::new(runtime.handle().clone());
        let (events, mut received) = mpsc::channel(8);
        Job::new(&lanes, &events, PaneId::Data, tag(1), wrap).spawn(|_: Worker<String>| panic!("on purpose"));
        Job::new(&lanes, &events, PaneId::Data, tag(2), wrap).spawn(|worker| {
            worker.send("alive".into());
        });
        drop(events);
        assert!(matches!(received.blocking_recv(), Some(Event::Fault(_))));
        assert!(matches!(received.blocking_recv(), Some(Event::Device(line)) if line == "alive"));
    }
}
