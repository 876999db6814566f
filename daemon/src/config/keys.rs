//! Every key of the configuration, once: its name, type, default and what it means. The sample
//! file, the documentation and the list of known keys all follow from these declarations.

use pawlatch_core::policy::{Effect, Rule};
use pawlatch_core::sight::Class;
use serde::{Deserialize, Serialize};

/// What the documentation says of one section.
struct SectionDoc {
    about: &'static [&'static str],
    keys: &'static [(&'static str, &'static [&'static str])],
}

/// Declares a section: a struct, its defaults and its documentation.
macro_rules! section {
    ($(#[doc = $about:literal])* $name:ident {
        $($(#[doc = $doc:literal])* $key:ident: $kind:ty = $default:expr,)*
    }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name { $($(#[doc = $doc])* pub $key: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $name {
            const DOC: SectionDoc = SectionDoc {
                about: &[$($about),*],
                keys: &[$((stringify!($key), &[$($doc),*]),)*],
            };
        }
    };
}

section! {
    /// Where pictures come from.
    CameraKeys {
        /// Source: `dir:PATH` (a directory of pictures in name order), `file:PATH` (H.264 MP4,
        /// animated GIF or WebP, or one picture), `sim:` (a simulated yard), or a bare path.
        /// `run` needs one.
        source: String = String::new(),
        /// Frames per second at which a directory or a simulated scene is played, 0.1 to 120. A
        /// video keeps its own time.
        fps: f64 = 10.0,
        /// Whether a directory or video begins again at its end.
        repeat: bool = false,
    }
}

section! {
    /// Which networks look at the pictures.
    ModelKeys {
        /// Directory with one directory per model, each with its `model.toml`.
        dir: String = "models".to_owned(),
        /// Name of the classifier, which says what an animal is. Empty: as `active.toml` in the
        /// models directory says.
        classifier: String = String::new(),
        /// Name of the detector, which says where an animal is. Empty: as `active.toml` says.
        detector: String = String::new(),
        /// Threads that the networks run on, up to 64. 0: as many as there are processor cores,
        /// but one, which the camera and the control loop have for themselves.
        threads: u64 = 0,
    }
}

section! {
    /// The part of the picture that matters.
    ApproachKeys {
        /// Polygon in which an animal must stand to be let in and in which motion counts: points
        /// `[x, y]` in fractions of the picture, x to the right, y down. Empty: everywhere.
        polygon: Vec<[f64; 2]> = Vec::new(),
        /// Polygons in which motion never counts: a road, a bush in the wind.
        masks: Vec<Vec<[f64; 2]>> = Vec::new(),
    }
}

section! {
    /// The motion gate, which saves the networks work.
    GateKeys {
        /// Change of a cell of the picture, in luma levels of 255, from which it has changed.
        cell_change: f64 = 10.0,
        /// Share of the cells that must have changed to be motion, 0 to 1.
        min_motion: f64 = 0.004,
        /// How long the networks go on looking after the last motion, milliseconds.
        linger_ms: u64 = 2_000,
        /// How long the networks may go without looking at all, milliseconds.
        patrol_ms: u64 = 2_000,
    }
}

section! {
    /// How evidence is gathered over several frames.
    EvidenceKeys {
        /// Wanted rate of opening for something that is not a dog, above 0 and below 0.5.
        false_accept: f64 = 0.001,
        /// Wanted rate of refusing a dog, above 0 and below 0.5.
        false_reject: f64 = 0.02,
        /// Most that one frame can say for or against, a log-likelihood ratio.
        frame_cap: f64 = 3.0,
        /// Frames closer together than this share one frame's weight, milliseconds.
        correlation_ms: u64 = 200,
        /// An animal not seen for this long is forgotten, milliseconds.
        forget_after_ms: u64 = 1_000,
        /// Smallest overlap (intersection over union) that continues a track, 0 to 1.
        min_iou: f64 = 0.2,
        /// Detector score from which a person, or a contradiction, is believed, 0 to 1.
        believe: f64 = 0.5,
    }
}

section! {
    /// The decision and its limits.
    DoorKeys {
        /// Evidence for a cat or a person from which it forbids opening, a log-likelihood ratio.
        veto: f64 = 2.0,
        /// Share of frames with contradicting networks from which they forbid opening, 0 to 1.
        doubt: f64 = 0.5,
        /// Whether a person in view forbids opening.
        person_vetoes: bool = true,
        /// Age from which a frame proves nothing any more, milliseconds.
        fresh_for_ms: u64 = 1_000,
        /// Without a new frame for this long the camera is lost, milliseconds.
        camera_lost_after_ms: u64 = 5_000,
        /// A black, covered, frozen or otherwise sick picture for this long is a fault,
        /// milliseconds.
        picture_fault_after_ms: u64 = 5_000,
        /// Without news of the latch for this long it does not answer, milliseconds.
        latch_silent_after_ms: u64 = 2_000,
        /// How long the latch stays unlocked when it hears nothing more, milliseconds. At least
        /// twice the control period of 50 ms.
        lease_ms: u64 = 1_000,
        /// How long the door waits unlocked for the dog, milliseconds. Longer than the lease.
        open_for_ms: u64 = 8_000,
        /// How long a passage may take, milliseconds.
        pass_for_ms: u64 = 20_000,
        /// How long the passage must be clear before the door locks, milliseconds.
        clear_for_ms: u64 = 1_000,
        /// How long the latch may take to be seen locked, milliseconds. Longer than it travels.
        relock_within_ms: u64 = 2_000,
        /// How long a cat is remembered after it was last seen, milliseconds.
        refuse_for_ms: u64 = 10_000,
        /// How long nothing must be there for a visit to be over, milliseconds.
        calm_for_ms: u64 = 2_000,
        /// How long the owner's "hold open" lasts, milliseconds.
        hold_open_for_ms: u64 = 600_000,
    }
}

section! {
    /// The latch.
    LatchKeys {
        /// Which latch: `simulated`.
        backend: String = "simulated".to_owned(),
        /// Whether the latch reports its position.
        feedback: bool = true,
        /// Shortest time between locking and unlocking again, milliseconds. Locking never waits.
        dwell_ms: u64 = 300,
        /// Most times the latch is unlocked within a minute, 1 to 600: more burns its driver.
        max_unlocks_per_minute: u64 = 20,
        /// Simulated latch: time from one end to the other, milliseconds.
        travel_ms: u64 = 150,
        /// Simulated latch: how much later its sensor tells, milliseconds.
        feedback_delay_ms: u64 = 20,
        /// Simulated latch: every how manieth movement sticks half-way until it is tried again;
        /// 0: never.
        jam_every: u64 = 0,
        /// Simulated latch: file that keeps the bolt's position when the program ends, as a real
        /// bolt does. Empty: none.
        state_path: String = String::new(),
    }
}

section! {
    /// Who may pass when.
    PolicyKeys {
        /// Time zone of the rules, such as `Europe/Berlin`. Empty: that of the system.
        time_zone: String = String::new(),
        /// Rules, in any order; deny beats allow. `who` is dog, cat, person or other; `effect`
        /// allow or deny; `ways` in, out (both if absent); `when` a range of local time with
        /// `from`, `to` and `days`. Coming in needs a rule that allows it; leaving is free unless
        /// a rule denies it.
        rules: Vec<Rule> = vec![Rule {
            name: "dogs".to_owned(),
            who: Class::Dog,
            ways: Vec::new(),
            effect: Effect::Allow,
            when: None,
        }],
    }
}

section! {
    /// What is recorded.
    JournalKeys {
        /// Directory of the database and the pictures of events.
        dir: String = "journal".to_owned(),
        /// Most the pictures and recordings may take together, megabytes, 1 to 1000000; the
        /// oldest go first.
        budget_mb: u64 = 2_000,
        /// Whether the door may only open for the dog while it can record.
        required: bool = true,
    }
}

section! {
    /// Signed bundles, by which models and the program are replaced; see docs/updates.md.
    UpdateKeys {
        /// Directory of downloaded programs. It must be on a file system that programs may be
        /// started from.
        dir: String = "update".to_owned(),
        /// Minisign public keys whose signatures are believed, each the second line of a `.pub`
        /// file. Beside them, the key that the program was built with, if it was.
        public_keys: Vec<String> = Vec::new(),
    }
}

section! {
    /// What is logged to stderr.
    LogKeys {
        /// Least level logged, or a filter in the notation of `tracing`: `error`, `warn`, `info`,
        /// `debug`, `trace`, `pawlatch::latch=debug,info`.
        filter: String = "info".to_owned(),
    }
}

/// The whole file as written.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    pub camera: CameraKeys,
    pub models: ModelKeys,
    pub approach: ApproachKeys,
    pub gate: GateKeys,
    pub evidence: EvidenceKeys,
    pub door: DoorKeys,
    pub latch: LatchKeys,
    pub policy: PolicyKeys,
    pub journal: JournalKeys,
    pub update: UpdateKeys,
    pub log: LogKeys,
}

const SECTIONS: [(&str, SectionDoc); 11] = [
    ("camera", CameraKeys::DOC),
    ("models", ModelKeys::DOC),
    ("approach", ApproachKeys::DOC),
    ("gate", GateKeys::DOC),
    ("evidence", EvidenceKeys::DOC),
    ("door", DoorKeys::DOC),
    ("latch", LatchKeys::DOC),
    ("policy", PolicyKeys::DOC),
    ("journal", JournalKeys::DOC),
    ("update", UpdateKeys::DOC),
    ("log", LogKeys::DOC),
];

/// The defaults as a tree of sections and keys: also the list of keys there are.
pub(super) fn defaults() -> toml::Table {
    // The structs hold only numbers, strings, lists and tables: this cannot fail, and a test
    // would see it if it ever did.
    toml::Table::try_from(Keys::default()).unwrap_or_default()
}

/// A configuration file with every key at its default, each explained.
pub fn sample() -> String {
    let defaults = defaults();
    let mut text = String::from(
        "# Pawlatch: every key, at its default. Delete what you do not change.\n\
         # Any key can also be set in the environment: PAWLATCH__DOOR__OPEN_FOR_MS=9000\n",
    );
    for (name, section) in SECTIONS {
        text.push('\n');
        for line in section.about {
            text.push_str(&format!("#{line}\n"));
        }
        text.push_str(&format!("[{name}]\n"));
        for (key, doc) in section.keys {
            for line in *doc {
                text.push_str(&format!("#{line}\n"));
            }
            text.push_str(&format!("{key} = {}\n", defaults[name][*key]));
        }
    }
    text
}

/// The reference of all keys in Markdown.
pub fn documentation() -> String {
    let defaults = defaults();
    let mut text = String::from(
        "# Configuration\n\n\
         Read from the defaults below, then from the TOML file, then from the environment; the \
         later wins. In the environment `door.open_for_ms` is `PAWLATCH__DOOR__OPEN_FOR_MS`. \
         Unknown keys are errors. Units are the last part of a key's name. `pawlatch check` \
         tells whether a file is sound. Relative paths start at the working directory.\n\n\
         This page and `deploy/pawlatch.toml` are made from the declarations in \
         `daemon/src/config/keys.rs`; a test compares them.\n",
    );
    for (name, section) in SECTIONS {
        let about = section.about.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        text.push_str(&format!("\n## [{name}]\n\n{about}\n\n| key | default | meaning |\n"));
        text.push_str("|---|---|---|\n");
        for (key, doc) in section.keys {
            let doc = doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
            text.push_str(&format!("| `{key}` | `{}` | {doc} |\n", defaults[name][*key]));
        }
    }
    text
}
