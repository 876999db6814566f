//! Panics on request, so that the proofs on an emulated board can end any thread of the service.
//! Only with the feature `ordeal`, which nothing that is handed out has.

/// Where the requests lie: the service's own directory below /run.
#[cfg(feature = "ordeal")]
const REQUESTS_DIR: &str = "/run/pawlatch";

/// Panics if a file `panic-THREAD` asks for it, and removes that, so that the next start lives.
#[cfg(feature = "ordeal")]
#[expect(clippy::panic, reason = "it is asked for")]
pub(crate) fn panic_if_asked(thread: &str) {
    let request = std::path::Path::new(REQUESTS_DIR).join(format!("panic-{thread}"));
    if std::fs::remove_file(request).is_ok() {
        panic!("asked for in the {thread} thread");
    }
}

/// Nothing, in every program that is handed out.
#[cfg(not(feature = "ordeal"))]
pub(crate) const fn panic_if_asked(_thread: &str) {}
