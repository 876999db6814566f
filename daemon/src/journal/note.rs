//! What the owner's surfaces record: who did what, and what the owner says of a visit.

use pawlatch_core::frame::Frame;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Score;

/// Something to be recorded that the door itself knows nothing of.
#[derive(Debug, Clone)]
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
    /// A candidate model saw something else than the models in use, during the approach that goes
    /// on; outside one it is dropped.
    Disagreement(Disagreement),
    /// Everything recorded so far is to be erased, files and all; the audit trail stays.
    Wipe,
}

/// A frame on which a candidate model and the models in use say different things.
#[derive(Debug, Clone)]
pub struct Disagreement {
    /// Hash of the candidate's ONNX.
    pub candidate: String,
    /// What the models in use give as the probability of a dog.
    pub in_use_says: Score,
    /// What the candidate gives.
    pub candidate_says: Score,
    /// The picture.
    pub frame: Frame,
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
