//! What the owner's surfaces record: who did what, and what the owner says of a visit.

use pawlatch_core::sight::Class;

/// Something to be recorded that the door itself knows nothing of.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// Somebody did something, or was kept from it.
    Audit(Audit),
    /// The owner says what an approach really was; the last word counts. `None` takes it back.
    Label {
        /// Number of the approach.
        approach: i64,
        /// What it was.
        class: Option<Class>,
    },
    /// Everything recorded so far is to be erased, files and all; the audit trail stays.
    Wipe,
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Who: a surface, the name of a token or a session, and an address where there is one.
    pub who: String,
    /// What was asked. Never holds a secret.
    pub what: String,
    /// What came of it.
    pub outcome: String,
}
