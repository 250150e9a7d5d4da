//! Notices when configuration files change, whatever the editor and the file system.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::load::read_bytes;

/// Quiet time after which a save counts as finished.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// A file written without pause is looked at this often all the same.
const LONGEST_DEBOUNCE: Duration = Duration::from_secs(1);
/// How often files are read without any event: network file systems send none.
const POLL: Duration = Duration::from_secs(2);

/// Calls back when the content of a watched file has changed, until it is dropped.
///
/// Folders are watched rather than files, since editors replace files; contents are compared, since a save
/// need not change anything. A file that is missing for a while, as between the steps of a save, is no change; one that
/// cannot be read for longer is one, and so is its return.
#[derive(Debug)]
pub struct Watcher {
    messages: Sender<Message>,
}

#[derive(Debug)]
enum Message {
    /// Something happened to a file of a watched name.
    Touched,
    /// The files to watch from now on, with their content at that time.
    Files(Vec<(PathBuf, Content)>),
    Stop,
}

/// What a file held when it was last looked at; `None` while it has never been there, or is gone for long.
type Content = Option<Vec<u8>>;

impl Watcher {
    /// Watches these files, which need not exist yet. What they hold now is where changes are counted
    /// from. `on_change` gets the path as it was given, on a thread of the watcher's own.
    pub fn new(files: Vec<PathBuf>, on_change: impl Fn(PathBuf) + Send + 'static) -> Self {
        Self::start(files, on_change, POLL, true)
    }

    fn start(
        files: Vec<PathBuf>,
        on_change: impl Fn(PathBuf) + Send + 'static,
        poll: Duration,
        with_events: bool,
    ) -> Self {
        let (messages, received) = channel();
        let mut watch = Watch {
            contents: HashMap::new(),
            names: Arc::default(),
            folders: BTreeSet::new(),
            away: HashMap::new(),
            events: with_events.then(|| Events::new(messages.clone())),
        };
        watch.set_files(with_contents(files));
        let run = move || watch.run(&received, &on_change, poll);
        let thread = thread::Builder::new().name("config-watch".to_owned()).spawn(run);
        if let Err(error) = &thread {
            tracing::warn!(%error, "configuration files are not watched");
        }
        Self { messages }
    }

    /// Watches these files from now on, and no others. Those watched before keep the content that changes
    /// are counted from.
    pub fn set_files(&self, files: Vec<PathBuf>) {
        // Fails only without the thread, which `start` has logged.
        let _ = self.messages.send(Message::Files(with_contents(files)));
    }
}

impl Drop for Watcher {
    /// Ends the watcher's thread without waiting for it: a callback that waits for the dropping thread
    /// would wait for ever.
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Stop);
    }
}

fn with_contents(files: Vec<PathBuf>) -> Vec<(PathBuf, Content)> {
    let read = |file: PathBuf| {
        let content = read_bytes(&file).ok();
        (file, content)
    };
    files.into_iter().map(read).collect()
}

type Names = Arc<Mutex<BTreeSet<OsString>>>;

/// The operating system's notifications, as far as it has any.
struct Events {
    messages: Sender<Message>,
    watcher: Option<RecommendedWatcher>,
}

impl Events {
    fn new(messages: Sender<Message>) -> Self {
        Self { messages, watcher: None }
    }

    fn watch(&mut self, folder: &Path, names: &Names) -> bool {
        if self.watcher.is_none() {
            let (messages, names) = (self.messages.clone(), Arc::clone(names));
            let created = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.is_ok_and(|event| concerns(&event, &names)) {
                    let _ = messages.send(Message::Touched);
                }
            });
            match created {
                Ok(watcher) => self.watcher = Some(watcher),
                Err(error) => tracing::debug!(%error, "no file events; files are polled"),
            }
        }
        let watcher = self.watcher.as_mut();
        watcher.is_some_and(|watcher| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok())
    }

    fn unwatch(&mut self, folder: &Path) {
        if let Some(watcher) = &mut self.watcher {
            // A folder that is gone has taken its watch with it.
            let _ = watcher.unwatch(folder);
        }
    }
}

/// Whether an event may mean that a file of one of these names has other content. Reading one does not:
/// we would wake ourselves for ever.
fn concerns(event: &notify::Event, names: &Names) -> bool {
    let is_read =
        matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    if is_read {
        return false;
    }
    let names = names.lock().unwrap_or_else(PoisonError::into_inner);
    event.need_rescan()
        || event.paths.iter().any(|path| path.file_name().is_some_and(|name| names.contains(name)))
}

struct Watch {
    contents: HashMap<PathBuf, Content>,
    names: Names,
    folders: BTreeSet<PathBuf>,
    events: Option<Events>,
    /// Files that were there once, and since when they have not been.
    away: HashMap<PathBuf, Instant>,
}

impl Watch {
    fn run(&mut self, received: &Receiver<Message>, on_change: &dyn Fn(PathBuf), poll: Duration) {
        loop {
            let mut has_settled = false;
            match received.recv_timeout(poll) {
                Ok(Message::Touched) => {
                    if !self.wait_for_quiet(received) {
                        return;
                    }
                }
                Ok(Message::Files(files)) => self.set_files(files),
                Err(RecvTimeoutError::Timeout) => {
                    has_settled = true;
                    self.watch_folders();
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            for file in self.changed(has_settled, poll) {
                on_change(file);
            }
        }
    }

    /// Waits until nothing has been touched for a while; whether to go on at all.
    fn wait_for_quiet(&mut self, received: &Receiver<Message>) -> bool {
        let deadline = Instant::now() + LONGEST_DEBOUNCE;
        while Instant::now() < deadline {
            match received.recv_timeout(DEBOUNCE) {
                Ok(Message::Touched) => {}
                Ok(Message::Files(files)) => self.set_files(files),
                Err(RecvTimeoutError::Timeout) => break,
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    fn set_files(&mut self, files: Vec<(PathBuf, Content)>) {
        let mut before = std::mem::take(&mut self.contents);
        for (file, content) in files {
            let content = before.remove(&file).unwrap_or(content);
            self.contents.insert(file, content);
        }
        self.watch_folders();
    }

    /// Watches the folder of every file, and of what it links to; folders that appear later are found at
    /// the next poll.
    fn watch_folders(&mut self) {
        let Some(events) = &mut self.events else { return };
        let mut names = BTreeSet::new();
        let mut folders = BTreeSet::new();
        for file in self.contents.keys() {
            for file in [Some(file.clone()), file.canonicalize().ok()].into_iter().flatten() {
                names.extend(file.file_name().map(ToOwned::to_owned));
                let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
                folders.insert(folder.unwrap_or(Path::new(".")).to_owned());
            }
        }
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        for folder in self.folders.difference(&folders) {
            events.unwatch(folder);
        }
        self.folders.retain(|folder| folders.contains(folder));
        for folder in folders {
            if !self.folders.contains(&folder) && events.watch(&folder, &self.names) {
                self.folders.insert(folder);
            }
        }
    }

    /// The files whose content has changed, in the order of their paths. An empty file counts
    /// only once nothing has happened for a while: some editors empty a file before they write it. One that is away counts
    /// after two polls.
    fn changed(&mut self, has_settled: bool, poll: Duration) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.contents.keys().cloned().collect();
        files.sort();
        files.retain(|file| {
            let Ok(content) = read_bytes(file) else {
                let since = *self.away.entry(file.clone()).or_insert_with(Instant::now);
                let known = self.contents.get_mut(file).filter(|_| since.elapsed() >= 2 * poll);
                return known.and_then(Option::take).is_some();
            };
            self.away.remove(file);
            if content.is_empty() && !has_settled {
                return false;
            }
            match self.contents.entry(file.clone()) {
                Entry::Occupied(mut known) if known.get().as_ref() != Some(&content) => {
                    known.insert(Some(content));
                    true
                }
                _ => false,
            }
        });
        files
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Far more than any change takes to be seen: only a failure waits this long.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Fixture {
        folder: tempfile::TempDir,
        changes: Receiver<PathBuf>,
        watcher: Watcher,
    }

    impl Fixture {
        /// Watches `a.toml` and `b.toml`, which hold their names.
        fn new(poll: Duration, with_events: bool) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            for name in ["a.toml", "b.toml"] {
                fs::write(folder.path().join(name), name).expect("write");
            }
            let files = vec![folder.path().join("a.toml"), folder.path().join("b.toml")];
            let (sender, changes) = channel();
            let watcher = Watcher::start(files, move |file| drop(sender.send(file)), poll, with_events);
            Self { folder, changes, watcher }
        }

        /// Only events can tell, where the machine has any to give: the poll would come too late.
        fn with_events() -> Self {
            let has_events = notify::recommended_watcher(|_| ()).is_ok();
            Self::new(if has_events { PATIENCE * 100 } else { POLL }, true)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).expect("write");
        }

        fn expect(&self, name: &str) {
            let changed = self.changes.recv_timeout(PATIENCE).expect("a change");
            assert_eq!(changed, self.path(name));
        }
    }

    #[test]
    fn a_saved_change_is_reported() {
        let fixture = Fixture::with_events();
        fixture.write("a.toml", "new");
        fixture.expect("a.toml");
        fixture.write("b.toml", "new");
        fixture.expect("b.toml");
    }

    #[test]
    fn a_replaced_file_is_reported_each_time() {
        let fixture = Fixture::with_events();
        for round in 0..3 {
            fixture.write(".a.toml.swp", &format!("round {round}"));
            fs::rename(fixture.path(".a.toml.swp"), fixture.path("a.toml")).expect("rename");
            fixture.expect("a.toml");
        }
    }

    #[test]
    fn a_file_moved_aside_and_written_again_is_reported_once() {
        let fixture = Fixture::with_events();
        fs::rename(fixture.path("a.toml"), fixture.path("a.toml~")).expect("rename");
        fixture.write("a.toml", "new");
        fixture.expect("a.toml");
        fixture.write("b.toml", "new");
        fixture.expect("b.toml");
    }

    #[test]
    fn the_same_content_is_no_change() {
        let fixture = Fixture::with_events();
        fixture.write("a.toml", "a.toml");
        fs::remove_file(fixture.path("a.toml")).expect("remove");
        fixture.write("a.toml", "a.toml");
        fixture.write("other.toml", "not watched");
        fixture.write("b.toml", "new");
        fixture.expect("b.toml");
        assert!(fixture.changes.try_recv().is_err());
    }

    #[test]
    fn an_emptied_file_is_reported_once_it_stays_so() {
        let fixture = Fixture::new(Duration::from_millis(20), false);
        fixture.write("a.toml", "");
        fixture.expect("a.toml");
    }

    #[test]
    fn without_events_files_are_polled() {
        let fixture = Fixture::new(Duration::from_millis(20), false);
        fixture.write("a.toml", "new");
        fixture.expect("a.toml");
        fixture.write("a.toml", "newer");
        fixture.expect("a.toml");
    }

    #[test]
    fn a_file_that_stays_away_is_reported_once_and_so_is_its_return() {
        let fixture = Fixture::new(Duration::from_millis(20), false);
        fs::remove_file(fixture.path("a.toml")).expect("remove");
        fixture.expect("a.toml");
        fs::create_dir(fixture.path("a.toml")).expect("folder");
        fixture.write("b.toml", "new");
        fixture.expect("b.toml");
        fs::remove_dir(fixture.path("a.toml")).expect("remove");
        fixture.write("a.toml", "a.toml");
        fixture.expect("a.toml");
    }

    #[test]
    fn what_a_link_points_at_is_watched() {
        let fixture = Fixture::with_events();
        let elsewhere = tempfile::tempdir().expect("folder");
        let target = elsewhere.path().join("real.toml");
        fs::write(&target, "old").expect("write");
        std::os::unix::fs::symlink(&target, fixture.path("link.toml")).expect("link");
        fixture.watcher.set_files(vec![fixture.path("link.toml"), fixture.path("a.toml")]);
        // The second file shows that the new list is in force.
        fixture.write("a.toml", "new");
        fixture.expect("a.toml");
        fs::write(&target, "new").expect("write");
        fixture.expect("link.toml");
    }

    #[test]
    fn files_may_appear_later_and_folders_too() {
        let fixture = Fixture::new(Duration::from_millis(20), true);
        let late = fixture.path("late/c.toml");
        fixture.watcher.set_files(vec![late.clone()]);
        fs::create_dir(fixture.path("late")).expect("folder");
        fs::write(&late, "new").expect("write");
        fixture.expect("late/c.toml");
    }

    #[test]
    fn nothing_is_reported_after_the_end() {
        let Fixture { folder, changes, watcher } = Fixture::with_events();
        drop(watcher);
        fs::write(folder.path().join("a.toml"), "new").expect("write");
        assert!(changes.recv().is_err(), "the callback is gone with the watcher");
    }

    #[test]
    fn reading_a_file_is_no_event() {
        let names: Names = Arc::new(Mutex::new(BTreeSet::from([OsString::from("a.toml")])));
        let event = |kind| notify::Event::new(kind).add_path("/x/a.toml".into());
        assert!(!concerns(&event(EventKind::Access(AccessKind::Open(AccessMode::Read))), &names));
        assert!(!concerns(&event(EventKind::Access(AccessKind::Close(AccessMode::Read))), &names));
        assert!(concerns(&event(EventKind::Access(AccessKind::Close(AccessMode::Write))), &names));
        assert!(concerns(&event(EventKind::Any), &names));
        let other = notify::Event::new(EventKind::Any).add_path("/x/luthier.db".into());
        assert!(!concerns(&other, &names));
    }
}
