//! The queue of trials, in SQLite.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::SweepError;
use super::file::SweepFile;
use super::goal::Goal;
use super::sampler::{Settings, overrides};
use super::trial::{Sweep, Trial, TrialState};
use crate::config::{Config, ConfigError};
use crate::runs::{Failure, Number, time};

/// Name of the queue's file in the project folder.
pub const QUEUE_FILE: &str = "luthier.db";

/// How long a writer waits for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Format of the file; increased with every change of the tables.
const FORMAT: i64 = 1;

const TABLES: &str = "
CREATE TABLE sweeps (
    id        INTEGER PRIMARY KEY,
    name      TEXT NOT NULL,
    sampler   TEXT NOT NULL,
    seed      INTEGER NOT NULL,
    metric    TEXT NOT NULL,
    direction TEXT NOT NULL,
    file      TEXT NOT NULL,
    config    TEXT NOT NULL,
    created   TEXT NOT NULL
) STRICT;
CREATE TABLE trials (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    sweep      INTEGER NOT NULL REFERENCES sweeps (id),
    number     INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    state      TEXT NOT NULL
               CHECK (state IN ('queued', 'held', 'running', 'finished', 'stopped', 'failed', 'cancelled')),
    cancelling INTEGER NOT NULL DEFAULT 0,
    settings   TEXT NOT NULL,
    run        TEXT,
    result     TEXT,
    failure    TEXT,
    attempts   INTEGER NOT NULL DEFAULT 0,
    created    TEXT NOT NULL,
    started    TEXT,
    ended      TEXT,
    UNIQUE (sweep, number)
) STRICT;
CREATE INDEX trials_by_state ON trials (state, position);
";

const TRIAL_COLUMNS: &str =
    "SELECT trials.*, sweeps.name AS sweep_name FROM trials JOIN sweeps ON sweeps.id = trials.sweep";

/// A project's trials. Every change is one transaction, so several processes can edit the queue at once.
pub struct Queue {
    connection: Connection,
    file: PathBuf,
}

/// Where a waiting trial is moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    Top,
    /// One place earlier.
    Up,
    /// One place later.
    Down,
    /// After all others.
    Bottom,
}

/// The result of cancelling a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It had not started and never will.
    Done,
    /// A run works on it and must be stopped; the trial is cancelled then.
    Running {
        /// Id of the run.
        run: String,
    },
}

impl Queue {
    /// Opens the queue of a project; creates it if there is none.
    pub fn open(project: &Path) -> Result<Self, SweepError> {
        Self::open_with(project.join(QUEUE_FILE), OpenFlags::default())
    }

    /// Opens the queue of a project; `Ok(None)` if there is none.
    pub fn open_existing(project: &Path) -> Result<Option<Self>, SweepError> {
        let file = project.join(QUEUE_FILE);
        if file.exists() { Self::open_with(file, OpenFlags::default()).map(Some) } else { Ok(None) }
    }

    fn open_with(file: PathBuf, flags: OpenFlags) -> Result<Self, SweepError> {
        let failed = failure_of(&file);
        let mut connection = Connection::open_with_flags(&file, flags).map_err(&failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(&failed)?;
        // WAL needs memory shared between processes, which network file systems do not provide.
        let mode = if on_network(&file) { "DELETE" } else { "WAL" };
        connection.pragma_update_and_check(None, "journal_mode", mode, |_| Ok(())).map_err(&failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        let found = migrate(&mut connection).map_err(&failed)?;
        if found > FORMAT {
            return Err(SweepError::Newer { file, found, known: FORMAT });
        }
        Ok(Self { connection, file })
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> SweepError + use<> {
        failure_of(&self.file)
    }

    /// Changes when another process has changed the queue; cheap enough to be read often.
    pub fn version(&self) -> Result<i64, SweepError> {
        self.connection.pragma_query_value(None, "data_version", |row| row.get(0)).map_err(self.failed())
    }

    /// Queues all trials of a sweep, after checking the configuration of each. Returns the ids of the sweep
    /// and its trials.
    pub fn add_sweep(&mut self, sweep: &SweepFile, base: &Config) -> Result<(i64, Vec<i64>), SweepError> {
        self.add(
            &sweep.name,
            &sweep.sampler.to_string(),
            sweep.seed,
            &sweep.goal,
            &sweep.text,
            base,
            &sweep.expand(),
        )
    }

    /// Queues one run: `base` with `settings` applied.
    pub fn add_single(&mut self, name: &str, settings: &Settings, base: &Config) -> Result<i64, SweepError> {
        let goal = Goal::default();
        let (_, trials) = self.add(name, "single", 0, &goal, "", base, std::slice::from_ref(settings))?;
        trials.first().copied().ok_or_else(|| SweepError::Refused("nothing was queued".to_owned()))
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of one row; both callers are above")]
    fn add(
        &mut self,
        name: &str,
        sampler: &str,
        seed: u64,
        goal: &Goal,
        file: &str,
        base: &Config,
        trials: &[Settings],
    ) -> Result<(i64, Vec<i64>), SweepError> {
        let trials =
            trials.iter().map(|settings| canonical(settings, base)).collect::<Result<Vec<_>, _>>()?;
        let now = time::text(time::now());
        self.change(|transaction| {
            transaction.execute(
                "INSERT INTO sweeps (name, sampler, seed, metric, direction, file, config, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    name,
                    sampler,
                    seed.cast_signed(),
                    goal.metric.to_string(),
                    goal.direction.to_string(),
                    file,
                    base.to_toml(),
                    now
                ],
            )?;
            let sweep = transaction.last_insert_rowid();
            let last: i64 =
                transaction
                    .query_row("SELECT coalesce(max(position), 0) FROM trials", [], |row| row.get(0))?;
            let mut insert = transaction.prepare(
                "INSERT INTO trials (sweep, number, position, state, settings, created)
                 VALUES (?1, ?2, ?3, 'queued', ?4, ?5)",
            )?;
            let mut ids = Vec::with_capacity(trials.len());
            for (number, settings) in (0_i64..).zip(&trials) {
                let settings = serde_json::json!(settings).to_string();
                insert.execute(params![sweep, number, last + 1 + number, settings, now])?;
                ids.push(transaction.last_insert_rowid());
            }
            Ok(Ok((sweep, ids)))
        })
    }

    /// All trials in the order of the queue.
    pub fn trials(&self) -> Result<Vec<Trial>, SweepError> {
        self.select(&format!("{TRIAL_COLUMNS} ORDER BY position, trials.id"), params![])
    }

    /// The trials of a sweep, by number.
    pub fn trials_of(&self, sweep: i64) -> Result<Vec<Trial>, SweepError> {
        self.select(&format!("{TRIAL_COLUMNS} WHERE sweep = ?1 ORDER BY number"), params![sweep])
    }

    pub fn trial(&self, id: i64) -> Result<Trial, SweepError> {
        self.select(&format!("{TRIAL_COLUMNS} WHERE trials.id = ?1"), params![id])?
            .pop()
            .ok_or(SweepError::NoTrial(id))
    }

    /// All sweeps, newest first.
    pub fn sweeps(&self) -> Result<Vec<Sweep>, SweepError> {
        let read = || -> rusqlite::Result<Vec<_>> {
            let mut statement = self.connection.prepare("SELECT * FROM sweeps ORDER BY id DESC")?;
            statement.query_map([], sweep_of)?.collect()
        };
        read().map_err(self.failed())
    }

    pub fn sweep(&self, id: i64) -> Result<Sweep, SweepError> {
        self.connection.query_row("SELECT * FROM sweeps WHERE id = ?1", [id], sweep_of).map_err(self.failed())
    }

    pub fn move_to(&mut self, id: i64, place: Place) -> Result<(), SweepError> {
        self.change(|transaction| {
            let state = match state_of(transaction, id)? {
                Ok(state) => state,
                Err(error) => return Ok(Err(error)),
            };
            if !state.waits() {
                return Ok(Err(refused(id, state, "moved")));
            }
            let waiting: Vec<(i64, i64)> = transaction
                .prepare(
                    "SELECT id, position FROM trials WHERE state IN ('queued', 'held') ORDER BY position, id",
                )?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            let mut order: Vec<_> = waiting.iter().map(|(id, _)| *id).collect();
            let positions: Vec<_> = waiting.iter().map(|(_, position)| *position).collect();
            let Some(from) = order.iter().position(|other| *other == id) else { return Ok(Ok(())) };
            let last = order.len() - 1;
            let to = match place {
                Place::Top => 0,
                Place::Up => from.saturating_sub(1),
                Place::Down => (from + 1).min(last),
                Place::Bottom => last,
            };
            let moved = order.remove(from);
            order.insert(to, moved);
            for (id, position) in order.iter().zip(positions) {
                transaction
                    .execute("UPDATE trials SET position = ?2 WHERE id = ?1", params![id, position])?;
            }
            Ok(Ok(()))
        })
    }

    /// Keeps a queued trial from being started until it is released.
    pub fn hold(&mut self, id: i64) -> Result<(), SweepError> {
        self.turn(id, "held", &[TrialState::Queued], TrialState::Held)
    }

    /// Allows a held trial to be started again.
    pub fn release(&mut self, id: i64) -> Result<(), SweepError> {
        self.turn(id, "released", &[TrialState::Held], TrialState::Queued)
    }

    /// Queues an ended trial again, at its old place, with a new run.
    pub fn retry(&mut self, id: i64) -> Result<(), SweepError> {
        let over = [TrialState::Stopped, TrialState::Failed, TrialState::Cancelled];
        self.turn(id, "retried", &over, TrialState::Queued)
    }

    /// Cancels a trial. If a run works on it, the caller must stop the run: see [`super::cancel`].
    pub fn cancel(&mut self, id: i64) -> Result<Cancelled, SweepError> {
        self.change(|transaction| {
            let found: Option<(String, Option<String>)> = transaction
                .query_row("SELECT state, run FROM trials WHERE id = ?1", [id], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            let Some((state, run)) = found else { return Ok(Err(SweepError::NoTrial(id))) };
            match parse_state(&state) {
                state if state.waits() => {
                    transaction.execute(
                        "UPDATE trials SET state = 'cancelled', ended = ?2 WHERE id = ?1",
                        params![id, time::text(time::now())],
                    )?;
                    Ok(Ok(Cancelled::Done))
                }
                TrialState::Running => {
                    transaction.execute("UPDATE trials SET cancelling = 1 WHERE id = ?1", [id])?;
                    Ok(Ok(Cancelled::Running { run: run.unwrap_or_default() }))
                }
                state => Ok(Err(refused(id, state, "cancelled"))),
            }
        })
    }

    fn turn(&mut self, id: i64, verb: &str, from: &[TrialState], to: TrialState) -> Result<(), SweepError> {
        self.change(|transaction| {
            let state = match state_of(transaction, id)? {
                Ok(state) => state,
                Err(error) => return Ok(Err(error)),
            };
            if !from.contains(&state) {
                return Ok(Err(refused(id, state, verb)));
            }
            if state.is_over() {
                transaction.execute(
                    "UPDATE trials SET run = NULL, result = NULL, failure = NULL, started = NULL, ended = NULL,
                     cancelling = 0, attempts = 0 WHERE id = ?1",
                    [id],
                )?;
            }
            transaction.execute("UPDATE trials SET state = ?2 WHERE id = ?1", params![id, to.to_string()])?;
            Ok(Ok(()))
        })
    }

    /// The trials on which a run works.
    pub(super) fn running(&self) -> Result<Vec<Trial>, SweepError> {
        self.select(
            &format!("{TRIAL_COLUMNS} WHERE state = 'running' ORDER BY position, trials.id"),
            params![],
        )
    }

    /// Takes the next queued trial. It is running then, but has no run yet.
    pub(super) fn claim(&mut self) -> Result<Option<Trial>, SweepError> {
        let claimed = self.change(|transaction| {
            let id: Option<i64> = transaction
                .query_row(
                    "SELECT id FROM trials WHERE state = 'queued' ORDER BY position, id LIMIT 1",
                    [],
                    |row| row.get(0),
                )
                .optional()?;
            if let Some(id) = id {
                transaction.execute(
                    "UPDATE trials SET state = 'running', started = ?2 WHERE id = ?1",
                    params![id, time::text(time::now())],
                )?;
            }
            Ok(Ok(id))
        })?;
        claimed.map(|id| self.trial(id)).transpose()
    }

    /// Whether any trial is queued.
    pub(super) fn has_queued(&self) -> Result<bool, SweepError> {
        self.connection
            .query_row("SELECT EXISTS (SELECT 1 FROM trials WHERE state = 'queued')", [], |row| row.get(0))
            .map_err(self.failed())
    }

    /// Puts back a claimed trial that has no run yet.
    pub(super) fn unclaim(&mut self, id: i64) -> Result<(), SweepError> {
        self.execute(
            "UPDATE trials SET state = CASE cancelling WHEN 0 THEN 'queued' ELSE 'cancelled' END, started = NULL
             WHERE id = ?1 AND state = 'running' AND run IS NULL",
            params![id],
        )
    }

    /// Records the run that works on a trial.
    pub(super) fn set_run(&mut self, id: i64, run: &str) -> Result<(), SweepError> {
        self.execute("UPDATE trials SET run = ?2 WHERE id = ?1", params![id, run])
    }

    /// Records that a process is about to be started for a trial.
    pub(super) fn count_attempt(&mut self, id: i64) -> Result<(), SweepError> {
        self.execute("UPDATE trials SET attempts = attempts + 1 WHERE id = ?1", params![id])
    }

    /// Records how a trial ended.
    pub(super) fn end(
        &mut self,
        id: i64,
        state: TrialState,
        result: Option<Number>,
        failure: Option<&Failure>,
    ) -> Result<(), SweepError> {
        let failure = failure.map(|failure| serde_json::json!(failure).to_string());
        let result = result.map(|result| serde_json::json!(result).to_string());
        self.execute(
            "UPDATE trials SET state = ?2, result = ?3, failure = ?4, ended = ?5 WHERE id = ?1 AND state = 'running'",
            params![id, state.to_string(), result, failure, time::text(time::now())],
        )
    }

    fn execute(&mut self, sql: &str, values: impl rusqlite::Params) -> Result<(), SweepError> {
        self.change(|transaction| transaction.execute(sql, values).map(|_| Ok(())))
    }

    /// Runs one transaction; an inner error rolls it back.
    fn change<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<T, SweepError>>,
    ) -> Result<T, SweepError> {
        let failed = failure_of(&self.file);
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let done = work(&transaction).map_err(&failed)??;
        transaction.commit().map_err(&failed)?;
        Ok(done)
    }

    fn select(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<Trial>, SweepError> {
        let read = || -> rusqlite::Result<Vec<_>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_map(values, trial_of)?.collect()
        };
        read().map_err(self.failed())
    }
}

/// Creates the tables if there are none. Returns the file's format.
fn migrate(connection: &mut Connection) -> rusqlite::Result<i64> {
    let format =
        |connection: &Connection| connection.pragma_query_value(None, "user_version", |row| row.get(0));
    let found: i64 = format(connection)?;
    if found != 0 {
        return Ok(found);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = format(&transaction)?;
    if found != 0 {
        return Ok(found);
    }
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()?;
    Ok(FORMAT)
}

/// The settings with each value as written in a configuration, if the configuration is valid with all of
/// them.
fn canonical(settings: &Settings, base: &Config) -> Result<Settings, SweepError> {
    let config = base.with(&overrides(settings)).map_err(ConfigError::from)?;
    Ok(settings
        .iter()
        .map(|(key, value)| (key.clone(), config.get_text(key).unwrap_or_else(|| value.clone())))
        .collect())
}

fn state_of(transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<Result<TrialState, SweepError>> {
    let state: Option<String> =
        transaction.query_row("SELECT state FROM trials WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    Ok(state.map(|state| parse_state(&state)).ok_or(SweepError::NoTrial(id)))
}

/// A check constraint of the table allows no other words.
fn parse_state(state: &str) -> TrialState {
    state.parse().unwrap_or(TrialState::Failed)
}

fn refused(id: i64, state: TrialState, verb: &str) -> SweepError {
    let hint = match (verb, state) {
        ("held", TrialState::Running) => "; pause its run, or cancel it",
        ("held" | "moved" | "cancelled", state) if state.is_over() => "; retry puts it back into the queue",
        ("retried", TrialState::Finished) => "; queue it again to run it once more",
        _ => "",
    };
    SweepError::Refused(format!("trial {id} is {state} and cannot be {verb}{hint}"))
}

fn trial_of(row: &Row<'_>) -> rusqlite::Result<Trial> {
    let json = |column: &str| row.get::<_, Option<String>>(column);
    let time = |column: &str| -> rusqlite::Result<Option<Timestamp>> {
        Ok(row.get::<_, Option<String>>(column)?.and_then(|text| text.parse().ok()))
    };
    Ok(Trial {
        id: row.get("id")?,
        sweep: row.get("sweep")?,
        sweep_name: row.get("sweep_name")?,
        number: row.get::<_, i64>("number")?.unsigned_abs(),
        position: row.get("position")?,
        state: parse_state(&row.get::<_, String>("state")?),
        cancelling: row.get("cancelling")?,
        settings: serde_json::from_str(&row.get::<_, String>("settings")?).unwrap_or_default(),
        run: row.get("run")?,
        result: json("result")?.and_then(|text| serde_json::from_str(&text).ok()),
        failure: json("failure")?.and_then(|text| serde_json::from_str(&text).ok()),
        attempts: row.get::<_, i64>("attempts")?.unsigned_abs(),
        created: time("created")?.unwrap_or_default(),
        started: time("started")?,
        ended: time("ended")?,
    })
}

fn sweep_of(row: &Row<'_>) -> rusqlite::Result<Sweep> {
    let goal = Goal {
        metric: row.get::<_, String>("metric")?.parse().unwrap_or_default(),
        direction: row.get::<_, String>("direction")?.parse().unwrap_or_default(),
    };
    Ok(Sweep {
        id: row.get("id")?,
        name: row.get("name")?,
        sampler: row.get("sampler")?,
        goal,
        config: row.get("config")?,
        created: row.get::<_, String>("created")?.parse().unwrap_or_default(),
    })
}

fn failure_of(file: &Path) -> impl Fn(rusqlite::Error) -> SweepError + use<> {
    let file = file.to_owned();
    move |source| {
        let remedy = match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                "another process is writing to it; try again"
            }
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                "move it away to start a new queue; this does not affect the runs in `runs/`"
            }
            Some(rusqlite::ErrorCode::DiskFull) => "free some space and try again",
            Some(
                rusqlite::ErrorCode::ReadOnly
                | rusqlite::ErrorCode::CannotOpen
                | rusqlite::ErrorCode::PermissionDenied,
            ) => "check that you may write to it and to its folder",
            _ => "try again",
        };
        SweepError::Queue { file: file.clone(), source, remedy }
    }
}

/// Whether a file is on a file system that several machines may have mounted (numbers of statfs(2)).
fn on_network(file: &Path) -> bool {
    const NETWORK: [u32; 12] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x0102_1997, // 9P
        0x5346_414f, // AFS
        0x00c3_6400, // Ceph
        0x0bd0_0bd0, // Lustre
        0x4750_4653, // GPFS
        0x1983_0326, // BeeGFS
        0x6573_5546, // FUSE, such as sshfs
        0x7461_636f, // OCFS2
    ];
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::statfs(folder).is_ok_and(|found| NETWORK.contains(&(found.f_type as u32)))
}

#[cfg(test)]
mod tests;
