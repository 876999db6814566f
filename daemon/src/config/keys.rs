//! Every key of the configuration, once: its name, type, default and what it means. The sample
//! file, the documentation and the list of known keys all follow from these declarations.

use pawlatch_core::policy::{Effect, Rule, Who};
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
        /// Source: a camera (`v4l2:/dev/video0`, `rpicam:0`, `argus:0`, `rtsp://…`, `http://…`), a
        /// recording (`dir:PATH`, `file:PATH`, a bare path), `sim:`, a simulated yard, or `demo:`,
        /// the visits of the demonstration again and again;
        /// docs/cameras.md has every form and option. `run` needs one.
        source: String = String::new(),
        /// A second camera, used while the first gives nothing. Empty: none.
        fallback: String = String::new(),
        /// Degrees by which the picture must be turned clockwise to stand upright: 0, 90, 180, 270.
        rotate: u64 = 0,
        /// Whether left and right are exchanged after turning.
        mirror: bool = false,
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
        /// What the networks compute with: `float`, `int8` or `auto`. `int8` holds for models whose
        /// manifest has ranges, on processors with instructions for it, and else means `float`;
        /// `auto` is `int8` where that was measured to be faster.
        precision: String = "float".to_owned(),
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
        patrol_ms: u64 = 5_000,
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
        /// From which a person is believed whom the classifier has also looked at: the geometric
        /// mean of the detector's score and the classifier's probability, 0 to 1.
        believe_both: f64 = 0.33,
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
        /// How long a cat is remembered after it was last seen, milliseconds; up to three times as
        /// long while somebody has been in view ever since.
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
        /// What moves the bolt: `solenoid` (or a strike: current unlocks), `magnet` (current
        /// locks), `servo`, `driven` (a motor opens and closes the door), or `simulated`.
        kind: String = "simulated".to_owned(),
        /// Its line: of the coil, or of the motor's opening direction, such as `GPIO17` or
        /// `gpiochip1:5 active-low`.
        line: String = String::new(),
        /// `driven`: the line of the motor's closing direction.
        close_line: String = String::new(),
        /// Line that is active while the bolt is home (a driven door closed): a reed or a switch,
        /// such as `GPIO22 pull-up active-low`. Empty: none; then set `feedback = false`.
        locked_line: String = String::new(),
        /// Line that is active while the bolt is drawn (a driven door open). Empty: none.
        unlocked_line: String = String::new(),
        /// `driven`: line that is active while something is in the way.
        obstruction_line: String = String::new(),
        /// `servo`: number of its PWM chip, as in `/sys/class/pwm/pwmchip0`, 0 to 255.
        pwm_chip: u64 = 0,
        /// `servo`: number of the channel on that chip, 0 to 255.
        pwm_channel: u64 = 0,
        /// `servo`: width of the pulses that lock, microseconds, 500 to 2500.
        locked_us: u64 = 1_000,
        /// `servo`: width of the pulses that unlock, microseconds, 500 to 2500.
        unlocked_us: u64 = 2_000,
        /// `solenoid`: how long it bears current without a break, milliseconds.
        max_energised_ms: u64 = 30_000,
        /// `solenoid`: share of the time it bears current in the long run, above 0, up to 1.
        duty: f64 = 0.25,
        /// `driven`: how long it warns before it closes, milliseconds, at least 1000.
        warn_ms: u64 = 3_000,
        /// How long a sensor must hold a level, milliseconds, up to 500.
        debounce_ms: u64 = 20,
        /// Whether the latch reports its position.
        feedback: bool = true,
        /// Shortest time between locking and unlocking again, milliseconds. Locking never waits.
        dwell_ms: u64 = 300,
        /// Most times the latch is unlocked within a minute, 1 to 600: more burns its driver.
        max_unlocks_per_minute: u64 = 20,
        /// Time from one end to the other, at most, milliseconds.
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
    /// The lines of latch and panel.
    LineKeys {
        /// Which board: `rppal` (a Raspberry Pi up to 4), `gpiocdev` (any Linux), `auto` (the
        /// first of these that is there), or `simulated`.
        board: String = "auto".to_owned(),
        /// `simulated`: directory with one file per line, named `17` for GPIO17 and holding `0` or
        /// `1`. Empty: kept in memory.
        simulated_dir: String = String::new(),
    }
}

section! {
    /// What hangs at the door beside the latch. Each line may be empty: there is none.
    PanelKeys {
        /// The button: a tap opens once, a hold locks until held again, a long press, when let go,
        /// holds open for `door.hold_open_for_ms`. Such as `GPIO27 pull-up active-low`.
        button_line: String = String::new(),
        /// How long the button is pressed for a hold, milliseconds.
        hold_ms: u64 = 1_500,
        /// How long for a long press, milliseconds.
        long_ms: u64 = 5_000,
        /// How long a press may last before the button counts as stuck, milliseconds.
        stuck_ms: u64 = 15_000,
        /// The passage beam, active while it is broken.
        beam_line: String = String::new(),
        /// A motion sensor, active while something moves: the networks then look at every frame.
        motion_line: String = String::new(),
        /// Red of the light; for a lamp of one colour any of the three.
        red_line: String = String::new(),
        /// Green of the light.
        green_line: String = String::new(),
        /// Blue of the light.
        blue_line: String = String::new(),
        /// A buzzer.
        buzzer_line: String = String::new(),
        /// How long a contact must hold a level, milliseconds, up to 500.
        debounce_ms: u64 = 30,
    }
}

section! {
    /// Who may pass when.
    PolicyKeys {
        /// Time zone of the rules, such as `Europe/Berlin`. Empty: that of the system.
        time_zone: String = String::new(),
        /// Rules, in any order; deny beats allow. `who` is dog, cat, person, other, `dog:NAME` (an
        /// animal of the house, docs/owner.md) or `unknown dog`; `effect` allow or deny; `ways` in, out (both if absent); `when` a range of local time with
        /// `from`, `to` and `days`. Coming in needs a rule that allows it; leaving is free unless
        /// a rule denies it.
        rules: Vec<Rule> = vec![Rule {
            name: "dogs".to_owned(),
            who: Who::Class(Class::Dog),
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
    /// The owner's page, served by the door itself.
    PageKeys {
        /// Address and port the page listens on; empty: no page. Until the owner's password is
        /// set it listens on this machine only, whatever is given here.
        listen: String = "127.0.0.1:8480".to_owned(),
        /// Certificate chain (PEM) for HTTPS. Empty: plain HTTP, which anybody on the same network
        /// can read along; then use it at home only, or behind a proxy.
        certificate_path: String = String::new(),
        /// Private key (PEM) of the certificate.
        key_path: String = String::new(),
        /// Whether every request comes through a proxy on this machine that speaks HTTPS to the
        /// outside and sets `X-Forwarded-For`.
        behind_proxy: bool = false,
        /// Names under which the page may be reached, beside IP addresses, `localhost` and names
        /// ending in `.local`, `.lan` or `.home.arpa`. Other names are refused, so that no foreign
        /// web site can pass itself off as the door.
        hosts: Vec<String> = Vec::new(),
    }
}

section! {
    /// Home Assistant and other listeners, by an MQTT broker.
    MqttKeys {
        /// Broker: `mqtt://HOST`, `mqtt://HOST:PORT` or, encrypted, `mqtts://HOST`. Empty: none.
        broker: String = String::new(),
        /// User name at the broker. Empty: none.
        username: String = String::new(),
        /// File that holds the password at the broker and nothing else. Empty: none.
        password_path: String = String::new(),
        /// Certificate (PEM) of the authority that vouches for the broker; `mqtts` needs it.
        ca_path: String = String::new(),
        /// Topic under which everything of this door is published; one door each.
        topic: String = "pawlatch".to_owned(),
        /// Topic under which Home Assistant looks for devices. Empty: nothing is announced.
        discovery_topic: String = "homeassistant".to_owned(),
        /// Whether commands that arrive through the broker may unlock the door. Locking is always
        /// obeyed.
        may_open: bool = true,
    }
}

section! {
    /// Messages about visits and faults. They never hold the door up.
    NotifyKeys {
        /// ntfy topic, such as `https://ntfy.example/mydoor`. Empty: none.
        ntfy_url: String = String::new(),
        /// URL that gets each message as JSON by POST. Empty: none.
        webhook_url: String = String::new(),
        /// File that holds a token, sent as `Authorization: Bearer`. Empty: none.
        token_path: String = String::new(),
        /// What is told: `let_in`, `kept_shut`, `nobody`, `overruled`, `fault`.
        what: Vec<String> = vec!["let_in".to_owned(), "kept_shut".to_owned(), "fault".to_owned()],
        /// Whether a picture goes along.
        pictures: bool = true,
        /// Beginning of the quiet hours, local time, such as `22:00`. Visits wait until they are
        /// over and come as one message; faults come at once. Empty: none.
        quiet_from: String = String::new(),
        /// End of the quiet hours.
        quiet_to: String = String::new(),
        /// Local time of a daily summary, such as `20:00`. Empty: none.
        digest_at: String = String::new(),
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
    pub lines: LineKeys,
    pub panel: PanelKeys,
    pub policy: PolicyKeys,
    pub journal: JournalKeys,
    pub page: PageKeys,
    pub mqtt: MqttKeys,
    pub notify: NotifyKeys,
    pub update: UpdateKeys,
    pub log: LogKeys,
}

const SECTIONS: [(&str, SectionDoc); 16] = [
    ("camera", CameraKeys::DOC),
    ("models", ModelKeys::DOC),
    ("approach", ApproachKeys::DOC),
    ("gate", GateKeys::DOC),
    ("evidence", EvidenceKeys::DOC),
    ("door", DoorKeys::DOC),
    ("latch", LatchKeys::DOC),
    ("lines", LineKeys::DOC),
    ("panel", PanelKeys::DOC),
    ("policy", PolicyKeys::DOC),
    ("journal", JournalKeys::DOC),
    ("page", PageKeys::DOC),
    ("mqtt", MqttKeys::DOC),
    ("notify", NotifyKeys::DOC),
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
         Read from the defaults below, then from the TOML file, then from `owner.toml` in the \
         journal's directory, which the owner's page writes, then from the environment; the \
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
