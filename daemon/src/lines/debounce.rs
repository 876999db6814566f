//! Contacts bounce: a level counts once it has held for a while.

use std::time::Duration;

use pawlatch_core::units::Uptime;

/// The level of a contact after bouncing has settled. Pure: levels and times come in.
#[derive(Debug, Clone)]
pub struct Debounce {
    span: Duration,
    settled: bool,
    /// Another level than the settled one, and since when it has held.
    other_since: Option<Uptime>,
}

impl Debounce {
    /// A contact that is settled at `active` and changes after another level has held for `span`.
    pub const fn new(span: Duration, active: bool) -> Self {
        Self { span, settled: active, other_since: None }
    }

    /// Takes in the level read at `now`; gives the settled one.
    pub fn step(&mut self, now: Uptime, active: bool) -> bool {
        if active == self.settled {
            self.other_since = None;
        } else {
            let since = *self.other_since.get_or_insert(now);
            if now.since(since) >= self.span {
                self.settled = active;
                self.other_since = None;
            }
        }
        self.settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_level_that_holds_for_the_span_counts_in_every_pattern() {
        // Every pattern of twelve samples, 10 ms apart, against the rule computed from scratch.
        for pattern in 0..1_u32 << 12 {
            let level = |n: u64| pattern >> n & 1 == 1;
            let mut contact = Debounce::new(Duration::from_millis(30), false);
            let mut settled = false;
            for n in 0..12_u64 {
                // Changed if this and the three samples before, 30 ms together, all differ.
                if n >= 3 && (n - 3..=n).all(|k| level(k) != settled) {
                    settled = !settled;
                }
                let told = contact.step(Uptime::from_millis(n * 10), level(n));
                assert_eq!(told, settled, "pattern {pattern:012b} at {n}");
            }
        }
    }

    #[test]
    fn a_contact_that_does_not_bounce_needs_no_span() {
        let mut contact = Debounce::new(Duration::ZERO, false);
        assert!(contact.step(Uptime::ZERO, true));
        assert!(!contact.step(Uptime::ZERO, false));
    }
}
