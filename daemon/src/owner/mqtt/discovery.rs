//! How Home Assistant is told that there is a door: one device with its entities.

use serde_json::{Value, json};

use super::topic;
use crate::owner::house::Order;
use crate::owner::settings::MqttSettings;

/// An entity as it is announced.
#[derive(Debug, Clone, PartialEq)]
pub struct Announced {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Value,
}

/// The topic as an identifier: letters, digits, `_` and `-`.
pub(super) fn node_id(topic: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    topic.chars().map(plain).collect()
}

/// Everything that is announced; nothing without a discovery topic.
pub fn announced(settings: &MqttSettings) -> Vec<Announced> {
    if settings.discovery_topic.is_empty() {
        return Vec::new();
    }
    let id = node_id(&settings.topic);
    let at = |name: &str| topic(settings, name);
    let entity = |component: &str, object: &str, name: Value, specific: Value| {
        let mut payload = json!({
            "name": name,
            "unique_id": format!("{id}_{object}"),
            "object_id": format!("{id}_{object}"),
            "availability_topic": at("available"),
            "device": {
                "identifiers": [id],
                "name": "Pawlatch",
                "manufacturer": "Pawlatch",
                "model": "Dog door",
                "sw_version": env!("CARGO_PKG_VERSION"),
            },
            "origin": { "name": "pawlatch", "sw_version": env!("CARGO_PKG_VERSION") },
        });
        if let (Some(payload), Value::Object(specific)) = (payload.as_object_mut(), specific) {
            payload.extend(specific);
        }
        let topic = format!("{}/{component}/{id}/{object}/config", settings.discovery_topic);
        Announced { topic, payload }
    };
    let mut all = vec![
        // The name of the device itself: the latch is what it is about.
        entity(
            "lock",
            "latch",
            Value::Null,
            json!({
                "state_topic": at("latch"),
                "command_topic": at("latch/set"),
                "payload_lock": "LOCK",
                "payload_unlock": "UNLOCK",
                "payload_open": "OPEN",
                "state_locked": "LOCKED",
                "state_unlocked": "UNLOCKED",
                "state_locking": "LOCKING",
                "state_unlocking": "UNLOCKING",
                "state_jammed": "JAMMED",
                "optimistic": false,
                "retain": false,
                "qos": 1,
            }),
        ),
        entity(
            "event",
            "visit",
            json!("Visit"),
            json!({
                "state_topic": at("visit"),
                "event_types": ["let_in", "kept_shut", "nobody", "overruled"],
                "icon": "mdi:paw",
            }),
        ),
        entity(
            "image",
            "picture",
            json!("Last visit"),
            json!({
                "image_topic": at("visit/picture"),
                "content_type": "image/jpeg",
            }),
        ),
        entity(
            "binary_sensor",
            "problem",
            json!("Problem"),
            json!({
                "state_topic": at("state"),
                "value_template": "{{ value_json.problem }}",
                "json_attributes_topic": at("state"),
                "device_class": "problem",
                "entity_category": "diagnostic",
            }),
        ),
        entity(
            "sensor",
            "state",
            json!("State"),
            json!({
                "state_topic": at("state"),
                "value_template": "{{ value_json.state }}",
                "icon": "mdi:door",
            }),
        ),
        entity(
            "sensor",
            "last_visit",
            json!("Last visit in words"),
            json!({
                "state_topic": at("visit/last"),
                "icon": "mdi:message-text",
            }),
        ),
        entity(
            "sensor",
            "temperature",
            json!("Temperature"),
            json!({
                "state_topic": at("machine"),
                "value_template": "{{ value_json.temperature }}",
                "device_class": "temperature",
                "unit_of_measurement": "°C",
                "state_class": "measurement",
                "entity_category": "diagnostic",
            }),
        ),
        entity(
            "update",
            "version",
            json!("Version"),
            json!({
                "state_topic": at("machine"),
                "entity_category": "diagnostic",
            }),
        ),
    ];
    for order in Order::ALL {
        let (name, icon) = match order {
            Order::OpenOnce => ("Let in once", "mdi:door-open"),
            Order::Lock => ("Lock now", "mdi:lock"),
            Order::HoldOpen => ("Hold open", "mdi:lock-open-variant"),
            Order::HoldLocked => ("Hold locked", "mdi:lock-alert"),
            Order::Release => ("By the rules", "mdi:paw"),
        };
        all.push(entity(
            "button",
            order.name(),
            json!(name),
            json!({
                "command_topic": at("order"),
                "payload_press": order.name(),
                "icon": icon,
                "qos": 1,
            }),
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_and_every_entity_its_own_id() {
        let all = announced(&MqttSettings::default());
        let mut ids: Vec<&str> =
            all.iter().filter_map(|a| a.payload["unique_id"].as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all.len());
        let device = &all[0].payload["device"];
        assert!(all.iter().all(|a| a.payload["device"] == *device));
        let none = MqttSettings { discovery_topic: String::new(), ..MqttSettings::default() };
        assert!(announced(&none).is_empty());
    }
}
