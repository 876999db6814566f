//! The database and its files, written synchronously. When [`Store::append`] returns `Ok`, what
//! it was given survives the loss of power.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use pawlatch_core::event::{self, What};
use rusqlite::{Connection, Transaction, params};

use super::files::{self, Files};
use super::{Audit, Disagreement, Entry, JournalError, JournalSettings, Note, Stamped};

/// Name of the database in the journal's directory.
pub(super) const DATABASE: &str = "journal.db";

/// Events kept; the oldest beyond go with the next cleaning.
const MAX_EVENTS: i64 = 200_000;
/// After how many batches old events are cleaned away.
const CLEAN_EVERY: u32 = 256;
/// Lines of the audit trail kept; the oldest beyond go with the next cleaning.
const MAX_AUDIT: i64 = 20_000;

/// The schema, one script per version. A published script is never changed, only followed.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        began TEXT NOT NULL             -- RFC 3339, UTC
    ) STRICT;
    CREATE TABLE approaches (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES runs (id),
        began TEXT NOT NULL,            -- RFC 3339, UTC
        began_ms INTEGER NOT NULL,      -- since the run began
        ended_ms INTEGER,
        verdict TEXT                    -- as in the vocabulary of events
    ) STRICT;
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES runs (id),
        approach INTEGER REFERENCES approaches (id),
        wall TEXT NOT NULL,             -- RFC 3339, UTC
        version INTEGER NOT NULL,       -- of the vocabulary
        event TEXT NOT NULL             -- JSON
    ) STRICT;
    CREATE INDEX events_of_approach ON events (approach);
    CREATE TABLE files (
        id INTEGER PRIMARY KEY,
        approach INTEGER NOT NULL REFERENCES approaches (id),
        kind TEXT NOT NULL,             -- picture or recording
        at_ms INTEGER NOT NULL,
        name TEXT NOT NULL UNIQUE,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX files_of_approach ON files (approach);
    CREATE TABLE gaps (
        id INTEGER PRIMARY KEY,
        wall TEXT NOT NULL,
        lost INTEGER NOT NULL,          -- entries; 0 if not known
        reason TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        wall TEXT NOT NULL,             -- RFC 3339, UTC
        who TEXT NOT NULL,
        what TEXT NOT NULL,
        outcome TEXT NOT NULL
    ) STRICT;
    CREATE TABLE labels (
        approach INTEGER PRIMARY KEY REFERENCES approaches (id),
        wall TEXT NOT NULL,
        class TEXT NOT NULL             -- what the owner says it was
    ) STRICT;
",
    "
    CREATE TABLE disagreements (
        file INTEGER PRIMARY KEY REFERENCES files (id) ON DELETE CASCADE,
        candidate TEXT NOT NULL,        -- hash of the candidate model
        in_use_says REAL NOT NULL,      -- probability of a dog
        candidate_says REAL NOT NULL
    ) STRICT;
",
];

/// The journal, open for writing.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
    files: Files,
    run: i64,
    /// The approach that entries belong to now.
    approach: Option<i64>,
    batches: u32,
}

impl Store {
    /// Opens the journal, making or migrating it as needed. One that is damaged is set aside
    /// beside the new one, with a row in the table of gaps that says so.
    ///
    /// # Errors
    /// If it cannot be opened or made, or a later version wrote it.
    pub fn open(settings: &JournalSettings) -> Result<Self, JournalError> {
        let action = "make the directory";
        fs::create_dir_all(&settings.dir).map_err(|source| JournalError::File {
            action,
            path: settings.dir.clone(),
            source,
        })?;
        match Self::open_sound(settings) {
            Err(error) if error.is_damage() => {
                let kept = set_aside(&settings.dir)?;
                tracing::warn!(
                    error = %error,
                    kept = %kept.display(),
                    "the journal was damaged and has been set aside; a new one is begun"
                );
                let mut store = Self::open_sound(settings)?;
                store.note_gap(0, &format!("damaged, set aside as {}", kept.display()))?;
                Ok(store)
            }
            outcome => outcome,
        }
    }

    fn open_sound(settings: &JournalSettings) -> Result<Self, JournalError> {
        let path = settings.dir.join(DATABASE);
        let failed = |source| JournalError::Database { path: path.clone(), source };
        let mut connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        let check: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if check != "ok" {
            return Err(JournalError::Damaged { path, problem: check });
        }
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        // FULL: a commit returns only when the log is on the disk.
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        migrate(&mut connection, MIGRATIONS, &path)?;
        connection
            .execute("INSERT INTO runs (began) VALUES (?1)", [Timestamp::now().to_string()])
            .map_err(failed)?;
        let run = connection.last_insert_rowid();
        let files = Files::open(&settings.dir, settings.budget_bytes, &connection)?;
        Ok(Self { path, connection, files, run, approach: None, batches: 0 })
    }

    /// Writes `batch`, all of it or nothing.
    ///
    /// # Errors
    /// If it cannot be written; nothing of it is then acknowledged, and it may be tried again. A
    /// disk that fails while it commits may have kept it: it is then there twice, never lost.
    pub fn append(&mut self, batch: &[Stamped]) -> Result<(), JournalError> {
        let path = self.path.clone();
        let failed = |source| JournalError::Database { path: path.clone(), source };
        let transaction = self.connection.transaction().map_err(failed)?;
        let mut approach = self.approach;
        for stamped in batch {
            let mut write = Write {
                transaction: &transaction,
                files: &self.files,
                path: &self.path,
                run: self.run,
                wall: stamped.wall.to_string(),
            };
            approach = write.entry(&stamped.entry, approach)?;
        }
        self.batches += 1;
        if self.batches.is_multiple_of(CLEAN_EVERY) {
            transaction
                .execute(
                    "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?1",
                    [MAX_EVENTS],
                )
                .map_err(failed)?;
            transaction
                .execute(
                    "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1",
                    [MAX_AUDIT],
                )
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        self.approach = approach;
        if batch.iter().any(|stamped| matches!(stamped.entry, Entry::Note(Note::Wipe))) {
            self.erase();
        }
        // The batch is acknowledged whatever becomes of older files; the next one tries again.
        if let Err(error) = self.files.evict(&mut self.connection, &self.path) {
            tracing::warn!(%error, "old files cannot be evicted");
        }
        Ok(())
    }

    /// Takes what was wiped from the disk too. The rows are gone already; should this fail, the
    /// next start removes the files.
    fn erase(&mut self) {
        let erased = self.connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)");
        if let Err(error) = erased {
            tracing::warn!(%error, "what was wiped may still be in free pages of the database");
        }
        if let Err(error) = self.files.sweep(&self.connection) {
            tracing::warn!(%error, "wiped files cannot be removed");
        }
    }

    /// Writes down that entries are missing.
    ///
    /// # Errors
    /// If that cannot be written either.
    pub fn note_gap(&mut self, lost: u64, reason: &str) -> Result<(), JournalError> {
        self.connection
            .execute(
                "INSERT INTO gaps (wall, lost, reason) VALUES (?1, ?2, ?3)",
                params![Timestamp::now().to_string(), lost as i64, reason],
            )
            .map_err(|source| JournalError::Database { path: self.path.clone(), source })?;
        Ok(())
    }
}

/// Writes one entry within a transaction.
struct Write<'a> {
    transaction: &'a Transaction<'a>,
    files: &'a Files,
    path: &'a Path,
    run: i64,
    wall: String,
}

impl Write<'_> {
    /// Returns the approach that what follows belongs to.
    fn entry(&mut self, entry: &Entry, approach: Option<i64>) -> Result<Option<i64>, JournalError> {
        match entry {
            Entry::Event(event) => {
                let approach = match event.what {
                    What::ApproachBegan => Some(self.begin(event.at.as_millis())?),
                    _ => approach,
                };
                let json = serde_json::to_string(event)
                    .map_err(|source| JournalError::Entry { id: 0, source })?;
                self.execute(
                    "INSERT INTO events (run, approach, wall, version, event)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![self.run, approach, self.wall, event::VERSION, json],
                )?;
                if let (What::ApproachEnded { verdict }, Some(approach)) = (&event.what, approach) {
                    self.end(approach, event.at.as_millis(), Some(&name(verdict)))?;
                }
                Ok(approach)
            }
            Entry::Picture(frame) => {
                let at = frame.captured_at().as_millis();
                let approach = approach.map_or_else(|| self.begin(at), Ok)?;
                let (bytes, ending) = files::encoded(frame);
                self.file(approach, "picture", at, ending, &bytes)?;
                Ok(Some(approach))
            }
            Entry::Recording { ended, verdict, text } => {
                let at = ended.as_millis();
                let approach = approach.map_or_else(|| self.begin(at), Ok)?;
                self.end(approach, at, verdict.as_ref().map(name).as_deref())?;
                self.file(approach, "recording", at, "jsonl", text.as_bytes())?;
                Ok(None)
            }
            Entry::Note(note) => self.note(note, approach),
        }
    }

    fn note(&self, note: &Note, approach: Option<i64>) -> Result<Option<i64>, JournalError> {
        match note {
            Note::Audit(Audit { who, what, outcome }) => self.execute(
                "INSERT INTO audit (wall, who, what, outcome) VALUES (?1, ?2, ?3, ?4)",
                params![self.wall, who, what, outcome],
            )?,
            // The approach may have been wiped since the owner looked at it.
            Note::Label { approach: of, class: Some(class) } => self.execute(
                "INSERT OR REPLACE INTO labels (approach, wall, class)
                 SELECT id, ?2, ?3 FROM approaches WHERE id = ?1",
                params![of, self.wall, class.name()],
            )?,
            Note::Label { approach: of, class: None } => {
                self.execute("DELETE FROM labels WHERE approach = ?1", params![of])?;
            }
            Note::Disagreement(disagreement) => {
                if let Some(approach) = approach {
                    self.disagreement(disagreement, approach)?;
                }
            }
            Note::Wipe => {
                for table in ["disagreements", "labels", "files", "events", "approaches", "gaps"] {
                    self.execute(&format!("DELETE FROM {table}"), [])?;
                }
                return Ok(None);
            }
        }
        Ok(approach)
    }

    fn disagreement(&self, found: &Disagreement, approach: i64) -> Result<(), JournalError> {
        let at = found.frame.captured_at().as_millis();
        let (bytes, ending) = files::encoded(&found.frame);
        self.file(approach, "disagreement", at, &format!("shadow.{ending}"), &bytes)?;
        let says = [found.in_use_says, found.candidate_says].map(|says| f64::from(says.get()));
        self.execute(
            "INSERT OR REPLACE INTO disagreements (file, candidate, in_use_says, candidate_says)
             SELECT id, ?3, ?4, ?5 FROM files
             WHERE approach = ?1 AND at_ms = ?2 AND kind = 'disagreement'",
            params![approach, at as i64, found.candidate, says[0], says[1]],
        )
    }

    fn begin(&self, at_ms: u64) -> Result<i64, JournalError> {
        self.execute(
            "INSERT INTO approaches (run, began, began_ms) VALUES (?1, ?2, ?3)",
            params![self.run, self.wall, at_ms as i64],
        )?;
        Ok(self.transaction.last_insert_rowid())
    }

    fn end(&self, approach: i64, at_ms: u64, verdict: Option<&str>) -> Result<(), JournalError> {
        self.execute(
            "UPDATE approaches SET ended_ms = ?2, verdict = coalesce(?3, verdict) WHERE id = ?1",
            params![approach, at_ms as i64, verdict],
        )
    }

    /// The file is on the disk before the row that names it can be.
    fn file(
        &self,
        approach: i64,
        kind: &str,
        at_ms: u64,
        ending: &str,
        bytes: &[u8],
    ) -> Result<(), JournalError> {
        let name = format!("{approach:08}-{at_ms:010}.{ending}");
        self.files.write(&name, bytes)?;
        self.execute(
            "INSERT INTO files (approach, kind, at_ms, name, bytes) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE SET bytes = excluded.bytes",
            params![approach, kind, at_ms as i64, name, bytes.len() as i64],
        )
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), JournalError> {
        self.transaction
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map_err(|source| JournalError::Database { path: self.path.to_owned(), source })?;
        Ok(())
    }
}

/// A verdict as it is written in JSON, without quotes.
fn name(verdict: &event::Verdict) -> String {
    serde_json::to_value(verdict)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Brings the schema up to the newest version, one transaction per step.
fn migrate(
    connection: &mut Connection,
    migrations: &[&str],
    path: &Path,
) -> Result<(), JournalError> {
    let failed = |source| JournalError::Database { path: path.to_owned(), source };
    let known = migrations.len() as i64;
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if !(0..=known).contains(&found) {
        return Err(JournalError::TooNew { path: path.to_owned(), found, known });
    }
    for (version, script) in (1..).zip(migrations).skip(found as usize) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(script).map_err(failed)?;
        transaction.pragma_update(None, "user_version", version).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}

/// Moves a damaged database and its files out of the way; returns where the database is now. One
/// set is kept: what was set aside before goes, so that a failing disk does not fill up.
fn set_aside(dir: &Path) -> Result<PathBuf, JournalError> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("damaged-") {
            let path = entry.path();
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(%error, path = %path.display(), "an old damaged journal stays");
            }
        }
    }
    let stamp = Timestamp::now().as_millisecond();
    let move_away = |name: &str, new: &str| {
        let (from, to) = (dir.join(name), dir.join(new));
        match fs::rename(&from, &to) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(JournalError::File { action: "set aside", path: from, source })
            }
            _ => Ok(to),
        }
    };
    move_away(&format!("{DATABASE}-wal"), &format!("damaged-{stamp}.db-wal"))?;
    move_away(&format!("{DATABASE}-shm"), &format!("damaged-{stamp}.db-shm"))?;
    move_away(files::DIR, &format!("damaged-{stamp}.files"))?;
    // Last, so that a crash in between finds the damage again.
    move_away(DATABASE, &format!("damaged-{stamp}.db"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_migration_runs_once_and_a_later_version_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("memory");
        let first = "CREATE TABLE a (x)";
        let second = "INSERT INTO a VALUES (1)";
        migrate(&mut connection, &[first], path).unwrap();
        migrate(&mut connection, &[first, second], path).unwrap();
        migrate(&mut connection, &[first, second], path).unwrap();
        let rows: i64 =
            connection.query_row("SELECT count(*) FROM a", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
        let error = migrate(&mut connection, &[first], path).unwrap_err();
        assert!(matches!(error, JournalError::TooNew { found: 2, known: 1, .. }));
    }

    #[test]
    fn a_migration_that_fails_leaves_the_version_before() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("memory");
        let broken = "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1)";
        assert!(migrate(&mut connection, &["CREATE TABLE a (x)", broken], path).is_err());
        migrate(&mut connection, &["CREATE TABLE a (x)", "CREATE TABLE b (x)"], path).unwrap();
    }
}
