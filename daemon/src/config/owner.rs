//! What the owner decides: the settings of page, broker and messages, and the file in which the
//! page keeps rules and approach.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use jiff::civil::Time;
use pawlatch_core::policy::Rule;
use serde::{Deserialize, Serialize};

use super::keys::Keys;
use super::layers::Layers;
use super::{Config, ConfigError};
use crate::owner::{Broker, MqttSettings, NotifySettings, OwnerSettings, PageSettings, Told, Url};

/// Name of the file in the journal's directory that the page writes.
pub const OWNER_FILE: &str = "owner.toml";

/// What the page may change of the configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnersWish {
    /// The rules, in place of those in the configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<WishedPolicy>,
    /// The approach, in place of that in the configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approach: Option<WishedApproach>,
}

/// The section `[policy]` of the owner's file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WishedPolicy {
    /// The rules.
    pub rules: Vec<Rule>,
}

/// The section `[approach]` of the owner's file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WishedApproach {
    /// Points `[x, y]` in fractions of the picture.
    pub polygon: Vec<[f64; 2]>,
    /// Polygons that do not count.
    pub masks: Vec<Vec<[f64; 2]>>,
}

impl OwnersWish {
    /// The wish in the journal directory `dir`; empty if there is none.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(OWNER_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                toml::from_str(&text).map_err(|source| ConfigError::Syntax { path, source })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// Keeps the wish in the journal directory `dir`, whole or not at all, after holding the
    /// whole configuration (the file at `config_path` and the environment included) against it.
    ///
    /// # Errors
    /// If the configuration would not be valid, or the file cannot be written. Nothing has then
    /// changed.
    pub fn save(&self, dir: &Path, config_path: Option<&Path>) -> Result<Config, ConfigError> {
        let path = dir.join(OWNER_FILE);
        let text = self.text();
        let layers = Layers::read(config_path, Some((&path, &text)), None)?;
        let config = Config::from_layers(&layers)?;
        let write = || {
            let part = path.with_extension("part");
            let mut file = fs::File::create(&part)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &path)
        };
        match write() {
            Ok(()) => Ok(config),
            Err(source) => Err(ConfigError::Write { path, source }),
        }
    }

    fn text(&self) -> String {
        // The structs hold only texts, numbers and lists: this cannot fail.
        let body = toml::to_string(self).unwrap_or_default();
        format!(
            "# Written by the owner's page. Delete a section to go back to pawlatch.toml.\n{body}"
        )
    }
}

/// The settings of the owner's surfaces.
pub(super) fn settings(keys: &Keys, layers: &Layers) -> Result<OwnerSettings, ConfigError> {
    Ok(OwnerSettings {
        page: page(keys, layers)?,
        mqtt: mqtt(keys, layers)?,
        notify: notify(keys, layers)?,
    })
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

fn page(keys: &Keys, layers: &Layers) -> Result<PageSettings, ConfigError> {
    let page = &keys.page;
    let listen = match page.listen.as_str() {
        "" => None,
        text => Some(text.parse::<SocketAddr>().map_err(|_| {
            let expected = "an address with a port, such as 0.0.0.0:8480, or nothing";
            layers.wrong("page.listen", text, expected)
        })?),
    };
    let tls = match (path(&page.certificate_path), path(&page.key_path)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            return Err(layers.wrong("page.key_path", "nothing", "the certificate's private key"));
        }
        (None, Some(_)) => {
            let expected = "the certificate of the private key";
            return Err(layers.wrong("page.certificate_path", "nothing", expected));
        }
    };
    if page.behind_proxy && listen.is_some_and(|listen| !listen.ip().is_loopback()) {
        let expected = "an address of this machine, such as 127.0.0.1:8480, since page.behind_proxy \
                        believes whoever connects";
        return Err(layers.wrong("page.listen", &page.listen, expected));
    }
    let hosts = page.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
    Ok(PageSettings { listen, tls, behind_proxy: page.behind_proxy, hosts })
}

fn mqtt(keys: &Keys, layers: &Layers) -> Result<MqttSettings, ConfigError> {
    let mqtt = &keys.mqtt;
    let broker = match mqtt.broker.as_str() {
        "" => None,
        text => Some(Broker::parse(text).ok_or_else(|| {
            layers.wrong("mqtt.broker", text, "mqtt://HOST, mqtt://HOST:PORT or mqtts://HOST")
        })?),
    };
    let plain = |topic: &str| !topic.contains(['+', '#', ' ', '\0']) && !topic.starts_with('/');
    if mqtt.topic.is_empty() || !plain(&mqtt.topic) {
        let expected = "a topic without spaces and wildcards, such as pawlatch";
        return Err(layers.wrong("mqtt.topic", &mqtt.topic, expected));
    }
    if !plain(&mqtt.discovery_topic) {
        let expected = "a topic without spaces and wildcards, such as homeassistant";
        return Err(layers.wrong("mqtt.discovery_topic", &mqtt.discovery_topic, expected));
    }
    let ca_path = path(&mqtt.ca_path);
    if broker.as_ref().is_some_and(|broker| broker.tls) && ca_path.is_none() {
        let expected = "the certificate of the authority that vouches for the broker";
        return Err(layers.wrong("mqtt.ca_path", "nothing", expected));
    }
    Ok(MqttSettings {
        broker,
        username: (!mqtt.username.is_empty()).then(|| mqtt.username.clone()),
        password_path: path(&mqtt.password_path),
        ca_path,
        topic: mqtt.topic.trim_end_matches('/').to_owned(),
        discovery_topic: mqtt.discovery_topic.trim_end_matches('/').to_owned(),
        may_open: mqtt.may_open,
    })
}

fn notify(keys: &Keys, layers: &Layers) -> Result<NotifySettings, ConfigError> {
    let notify = &keys.notify;
    let url = |key: &str, text: &str| match text {
        "" => Ok(None),
        text if text.starts_with("https://") || text.starts_with("http://") => {
            Ok(Some(Url::new(text)))
        }
        // The address may hold a secret, so it is not told.
        _ => Err(layers.wrong(key, "something else", "a URL that begins with https:// or http://")),
    };
    let time = |key: &str, text: &str| match text {
        "" => Ok(None),
        text => text
            .parse::<Time>()
            .map(Some)
            .map_err(|_| layers.wrong(key, text, "a time of day such as 22:00, or nothing")),
    };
    let mut what = Vec::new();
    for text in &notify.what {
        let expected = "let_in, kept_shut, nobody, overruled or fault";
        what.push(Told::parse(text).ok_or_else(|| layers.wrong("notify.what", text, expected))?);
    }
    let quiet = match (
        time("notify.quiet_from", &notify.quiet_from)?,
        time("notify.quiet_to", &notify.quiet_to)?,
    ) {
        (Some(from), Some(to)) => Some((from, to)),
        (None, None) => None,
        _ => {
            let expected = "both ends of the quiet hours, or neither";
            return Err(layers.wrong("notify.quiet_from", &notify.quiet_from, expected));
        }
    };
    Ok(NotifySettings {
        ntfy: url("notify.ntfy_url", &notify.ntfy_url)?,
        webhook: url("notify.webhook_url", &notify.webhook_url)?,
        token_path: path(&notify.token_path),
        what,
        pictures: notify.pictures,
        quiet,
        digest_at: time("notify.digest_at", &notify.digest_at)?,
    })
}
