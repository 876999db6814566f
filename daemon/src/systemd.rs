//! Tells systemd how the program is doing: the notification protocol of sd_notify(3).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// How long the watchdog waits while the door starts anew within the same program.
const STARTS_ANEW_WITHIN_US: u64 = 60_000_000;

/// The message of a door that is in service: the watchdog's limit is again the unit's own.
pub fn ready() -> String {
    match env::var("WATCHDOG_USEC") {
        Ok(limit) => format!("READY=1\nWATCHDOG_USEC={limit}"),
        Err(_) => "READY=1".to_owned(),
    }
}

/// The message of a door that starts anew without a new process: no control cycle ends meanwhile.
pub fn starting_anew() -> String {
    format!("STATUS=starting anew\nWATCHDOG_USEC={STARTS_ANEW_WITHIN_US}")
}

/// Sends `state`, such as `READY=1` or `WATCHDOG=1`. Does nothing when systemd did not start the
/// program.
///
/// # Errors
/// If the message cannot be sent.
pub fn notify(state: &str) -> io::Result<()> {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_bytes() {
        [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // The control loop must never wait for systemd.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(|_| ())
}
