//! What happened, kept: events and approaches in SQLite, pictures and recordings as files.
//!
//! Recording never holds up the door. Entries go through a bounded queue to a thread that writes
//! them; what is written is *acknowledged* only when it would survive the loss of power. Whether
//! that goes well is state ([`JournalHealth`]) that the door is told, not an error thrown at it.
//! Entries that find the queue full are lost, are counted, and leave a row in the table of gaps.

mod archive;
mod files;
mod note;
mod recording;
mod store;
mod writer;

use std::path::PathBuf;

use jiff::Timestamp;
use pawlatch_core::door::JournalHealth;
use pawlatch_core::event::{Event, Verdict};
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Uptime;
use thiserror::Error;

pub use archive::{
    Archive, Gap, StoredApproach, StoredAudit, StoredDisagreement, StoredEvent, StoredPicture,
};
pub use note::{Audit, Disagreement, Note};
pub use recording::{MAX_STEPS, Recording, RecordingError, Replayed, Step};
pub use store::Store;
pub use writer::{Journal, QUEUE, Scribe};

/// Where and how much is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalSettings {
    /// Directory of the database and of the files.
    pub dir: PathBuf,
    /// Most that pictures and recordings may take together, bytes.
    pub budget_bytes: u64,
}

/// Something to be recorded.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An event. [`ApproachBegan`] opens an approach, to which what follows belongs until
    /// [`ApproachEnded`] and the recording after it.
    ///
    /// [`ApproachBegan`]: pawlatch_core::event::What::ApproachBegan
    /// [`ApproachEnded`]: pawlatch_core::event::What::ApproachEnded
    Event(Event),
    /// A picture of the approach.
    Picture(Frame),
    /// The recording of the approach that ended, or was broken off (`verdict: None`).
    Recording {
        /// When the approach ended.
        ended: Uptime,
        /// How.
        verdict: Option<Verdict>,
        /// JSON lines, as [`Recording`] makes them.
        text: String,
    },
    /// What the owner did, or wants recorded.
    Note(Note),
}

/// An entry with the wall clock's reading when it was recorded.
#[derive(Debug, Clone)]
pub struct Stamped {
    /// What.
    pub entry: Entry,
    /// When, by the wall clock, trusted or not.
    pub wall: Timestamp,
}

/// Takes what is to be recorded; must not wait.
pub trait Recorder {
    /// Takes `entry` over.
    fn record(&mut self, entry: Entry);

    /// Whether what is taken over gets recorded.
    fn health(&self) -> JournalHealth;
}

/// Keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRecorder;

impl Recorder for NoRecorder {
    fn record(&mut self, _entry: Entry) {}

    fn health(&self) -> JournalHealth {
        JournalHealth::Writable
    }
}

/// Keeps everything in memory: for replay and tests.
#[derive(Debug, Clone, Default)]
pub struct MemoryRecorder {
    /// What was recorded, in order.
    pub entries: Vec<Entry>,
}

impl Recorder for MemoryRecorder {
    fn record(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    fn health(&self) -> JournalHealth {
        JournalHealth::Writable
    }
}

/// Why the journal cannot be written or read.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A file or directory of it cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error("cannot use the journal {}", path.display())]
    Database {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The database was written by a later version.
    #[error(
        "the journal {} is of version {found}, this program knows up to {known}; update it or \
         choose another `journal.dir`",
        path.display()
    )]
    TooNew {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known.
        known: i64,
    },
    /// The database fails its own check.
    #[error("the journal {} is damaged: {problem}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        problem: String,
    },
    /// An entry cannot be understood.
    #[error("entry {id} of the journal cannot be understood")]
    Entry {
        /// Its number.
        id: i64,
        /// Why not.
        source: serde_json::Error,
    },
}

impl JournalError {
    /// Whether the database's content is broken, so that trying again is in vain.
    fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Damaged { .. } => true,
            Self::Database { source, .. } => {
                matches!(source.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
            }
            Self::File { .. } | Self::TooNew { .. } | Self::Entry { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
