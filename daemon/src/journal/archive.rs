//! The journal, open for reading: for listing, showing, exporting and replaying. Reading does
//! not disturb a daemon that writes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pawlatch_core::event::{Event, Verdict};
use pawlatch_core::sight::Class;
use pawlatch_core::units::Uptime;
use rusqlite::{Connection, OpenFlags, Row};

use super::store::DATABASE;
use super::{Audit, JournalError, files};

/// A recorded event.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its number, rising.
    pub id: i64,
    /// Number of the run of the program it happened in; its time counts from the run's start.
    pub run: i64,
    /// The approach it belongs to.
    pub approach: Option<i64>,
    /// The wall clock's reading, RFC 3339 in UTC.
    pub wall: String,
    /// What happened.
    pub event: Event,
}

/// A recorded approach.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredApproach {
    /// Its number, rising.
    pub id: i64,
    /// Number of the run of the program.
    pub run: i64,
    /// The wall clock's reading at its beginning, RFC 3339 in UTC.
    pub began_wall: String,
    /// When it began, in its run.
    pub began: Uptime,
    /// When it ended; `None` if the program ended first.
    pub ended: Option<Uptime>,
    /// How it ended.
    pub verdict: Option<Verdict>,
    /// The recording, unless it was broken off or evicted.
    pub recording: Option<PathBuf>,
    /// The pictures that are still there, oldest first.
    pub pictures: Vec<StoredPicture>,
    /// What the owner says it was.
    pub label: Option<Class>,
}

/// A picture of an approach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPicture {
    /// When it was taken, in its run.
    pub at: Uptime,
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// A picture on which a candidate model and the models in use said different things.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDisagreement {
    /// Number of its file.
    pub id: i64,
    /// The approach it was seen in.
    pub approach: i64,
    /// The picture.
    pub path: PathBuf,
    /// What the models in use gave as the probability of a dog.
    pub in_use_says: f32,
    /// What the candidate gave.
    pub candidate_says: f32,
}

/// A line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAudit {
    /// The wall clock's reading, RFC 3339 in UTC.
    pub wall: String,
    /// Who did what, and what came of it.
    pub audit: Audit,
}

/// A place where entries are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The wall clock's reading when it was noticed.
    pub wall: String,
    /// How many entries; 0 if not known.
    pub lost: u64,
    /// Why.
    pub reason: String,
}

/// A journal open for reading.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
    connection: Connection,
}

impl Archive {
    /// Opens the journal in `dir`.
    ///
    /// # Errors
    /// If there is none or it cannot be read.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join(DATABASE);
        if let Err(source) = std::fs::metadata(&path) {
            return Err(JournalError::File { action: "read", path, source });
        }
        // A reader of a log needs to write its shared memory, so not strictly read-only.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags)
            .and_then(|connection| {
                connection.busy_timeout(Duration::from_secs(5))?;
                connection.pragma_update(None, "query_only", true)?;
                Ok(connection)
            })
            .map_err(|source| JournalError::Database { path, source })?;
        Ok(Self { dir: dir.to_owned(), connection })
    }

    /// The newest `limit` events, oldest first.
    ///
    /// # Errors
    /// If they cannot be read or understood.
    pub fn events(&self, limit: usize) -> Result<Vec<StoredEvent>, JournalError> {
        let sql = "SELECT id, run, approach, wall, event FROM events ORDER BY id DESC LIMIT ?1";
        let mut events = self.events_by(sql, i64::try_from(limit).unwrap_or(i64::MAX))?;
        events.reverse();
        Ok(events)
    }

    /// The events of one approach, oldest first.
    ///
    /// # Errors
    /// If they cannot be read or understood.
    pub fn events_of(&self, approach: i64) -> Result<Vec<StoredEvent>, JournalError> {
        let sql =
            "SELECT id, run, approach, wall, event FROM events WHERE approach = ?1 ORDER BY id";
        self.events_by(sql, approach)
    }

    /// The newest `limit` approaches, oldest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn approaches(&self, limit: usize) -> Result<Vec<StoredApproach>, JournalError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = "SELECT id FROM approaches ORDER BY id DESC LIMIT ?1";
        let ids: Vec<i64> = self.rows(sql, limit, |row| row.get(0))?;
        let mut found = Vec::new();
        for id in ids.into_iter().rev() {
            found.extend(self.approach(id)?);
        }
        Ok(found)
    }

    /// The newest `limit` approaches that began before approach `before` (from the newest if
    /// `None`), newest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn approaches_before(
        &self,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<StoredApproach>, JournalError> {
        let sql = format!("SELECT id FROM approaches WHERE id < ?1 ORDER BY id DESC LIMIT {limit}");
        let ids: Vec<i64> = self.rows(&sql, before.unwrap_or(i64::MAX), |row| row.get(0))?;
        let mut found = Vec::new();
        for id in ids {
            found.extend(self.approach(id)?);
        }
        Ok(found)
    }

    /// Number of the newest run of the program.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn newest_run(&self) -> Result<Option<i64>, JournalError> {
        let runs: Vec<Option<i64>> =
            self.rows("SELECT max(id) FROM runs WHERE id > ?1", 0, |row| row.get(0))?;
        Ok(runs.into_iter().next().flatten())
    }

    /// The newest `limit` lines of the audit trail, newest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn audit(&self, limit: usize) -> Result<Vec<StoredAudit>, JournalError> {
        let sql = "SELECT wall, who, what, outcome FROM audit ORDER BY id DESC LIMIT ?1";
        self.rows(sql, i64::try_from(limit).unwrap_or(i64::MAX), |row| {
            let audit = Audit { who: row.get(1)?, what: row.get(2)?, outcome: row.get(3)? };
            Ok(StoredAudit { wall: row.get(0)?, audit })
        })
    }

    /// The newest `limit` disagreements of the candidate with this hash, newest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn disagreements(
        &self,
        candidate: &str,
        limit: usize,
    ) -> Result<Vec<StoredDisagreement>, JournalError> {
        let sql = "SELECT f.id, f.approach, f.name, d.in_use_says, d.candidate_says, d.candidate \
                   FROM disagreements d JOIN files f ON f.id = d.file \
                   WHERE f.id > ?1 ORDER BY f.id DESC";
        let all = self.rows(sql, 0, |row| {
            let says = |n| row.get::<_, f64>(n).map(|says| says as f32);
            let path = self.dir.join(files::DIR).join(row.get::<_, String>(2)?);
            let (id, approach) = (row.get(0)?, row.get(1)?);
            let (in_use_says, candidate_says) = (says(3)?, says(4)?);
            let found = StoredDisagreement { id, approach, path, in_use_says, candidate_says };
            Ok((row.get::<_, String>(5)?, found))
        })?;
        let of_it = all.into_iter().filter(|(of, _)| of == candidate);
        Ok(of_it.map(|(_, found)| found).take(limit).collect())
    }

    /// One approach with its files; `None` if there is no such approach.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn approach(&self, id: i64) -> Result<Option<StoredApproach>, JournalError> {
        let sql = "SELECT run, began, began_ms, ended_ms, verdict, \
                   (SELECT class FROM labels WHERE approach = id) FROM approaches WHERE id = ?1";
        let found = self.rows(sql, id, |row| {
            let verdict: Option<String> = row.get(4)?;
            Ok(StoredApproach {
                id,
                run: row.get(0)?,
                began_wall: row.get(1)?,
                began: uptime(row.get(2)?),
                ended: row.get::<_, Option<i64>>(3)?.map(uptime),
                verdict: verdict.and_then(|v| serde_json::from_value(v.into()).ok()),
                recording: None,
                pictures: Vec::new(),
                label: row
                    .get::<_, Option<String>>(5)?
                    .and_then(|class| serde_json::from_value(class.into()).ok()),
            })
        })?;
        let Some(mut approach) = found.into_iter().next() else { return Ok(None) };
        let sql =
            "SELECT kind, at_ms, name, bytes FROM files WHERE approach = ?1 ORDER BY at_ms, id";
        let files = self.rows(sql, id, |row| {
            let name: String = row.get(2)?;
            let path = self.dir.join(files::DIR).join(name);
            let bytes = row.get::<_, i64>(3)? as u64;
            Ok((row.get::<_, String>(0)?, StoredPicture { at: uptime(row.get(1)?), path, bytes }))
        })?;
        for (kind, file) in files {
            if kind == "recording" {
                approach.recording = Some(file.path);
            } else if kind == "picture" {
                approach.pictures.push(file);
            }
        }
        Ok(Some(approach))
    }

    /// The approach that event `id` belongs to; `None` if there is no such event, or it belongs
    /// to none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn approach_of_event(&self, id: i64) -> Result<Option<StoredApproach>, JournalError> {
        let sql = "SELECT approach FROM events WHERE id = ?1";
        let found: Vec<Option<i64>> = self.rows(sql, id, |row| row.get(0))?;
        match found.first().copied().flatten() {
            Some(approach) => self.approach(approach),
            None => Ok(None),
        }
    }

    /// Where entries are missing, oldest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn gaps(&self) -> Result<Vec<Gap>, JournalError> {
        let sql = "SELECT wall, lost, reason FROM gaps WHERE id > ?1 ORDER BY id";
        self.rows(sql, 0, |row| {
            let lost = row.get::<_, i64>(1)? as u64;
            Ok(Gap { wall: row.get(0)?, lost, reason: row.get(2)? })
        })
    }

    fn events_by(&self, sql: &str, value: i64) -> Result<Vec<StoredEvent>, JournalError> {
        let rows = self.rows(sql, value, |row| {
            let ids = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((ids, row.get(3)?, row.get::<_, String>(4)?))
        })?;
        rows.into_iter()
            .map(|((id, run, approach), wall, json)| {
                let event = serde_json::from_str(&json)
                    .map_err(|source| JournalError::Entry { id, source })?;
                Ok(StoredEvent { id, run, approach, wall, event })
            })
            .collect()
    }

    fn rows<T>(
        &self,
        sql: &str,
        value: i64,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, JournalError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut rows| rows.query_map([value], read)?.collect())
            .map_err(|source| JournalError::Database { path: self.dir.join(DATABASE), source })
    }
}

fn uptime(ms: i64) -> Uptime {
    Uptime::from_millis(u64::try_from(ms).unwrap_or(0))
}
