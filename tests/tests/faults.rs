//! SQLite on a disk whose n-th operation fails or is torn, for every n. One test only: the
//! failing file system is global to the process.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, OnceLock};

use pawlatch::journal::{Archive, Entry, JournalSettings, Stamped, Store};
use pawlatch_core::event::{Event, What};
use pawlatch_core::units::Uptime;
use rusqlite::ffi;

/// Operations that still succeed; at zero one fails. Negative: none fails.
static LEFT: AtomicI64 = AtomicI64::new(-1);
/// Whether everything after the failed operation fails too, as on a disk that is gone.
static FOR_GOOD: AtomicBool = AtomicBool::new(false);
/// Whether the failing write puts half of its bytes on the disk.
static TORN: AtomicBool = AtomicBool::new(false);
/// Whether an operation has failed.
static STRUCK: AtomicBool = AtomicBool::new(false);

/// The system's own file system, as an address, since a raw pointer cannot be shared.
static SYSTEM: OnceLock<usize> = OnceLock::new();
/// How the system's own file system works on an open file. Its tables differ only in how they
/// lock, and share the operations that are made to fail here.
static HONEST: OnceLock<ffi::sqlite3_io_methods> = OnceLock::new();
/// For each of its tables, by address, one that fails; never freed.
static FAILING: Mutex<Vec<(usize, &'static ffi::sqlite3_io_methods)>> = Mutex::new(Vec::new());

/// Whether this operation is to fail.
fn strikes() -> bool {
    let left = LEFT.load(Ordering::SeqCst);
    if left < 0 {
        return false;
    }
    if left > 0 {
        LEFT.store(left - 1, Ordering::SeqCst);
        return false;
    }
    if !FOR_GOOD.load(Ordering::SeqCst) {
        LEFT.store(-1, Ordering::SeqCst);
    }
    STRUCK.store(true, Ordering::SeqCst);
    true
}

fn honest() -> &'static ffi::sqlite3_io_methods {
    HONEST.get().expect("a file is open")
}

/// The failing twin of the table at `methods`.
///
/// # Safety
/// `methods` must point to a table of SQLite's.
unsafe fn twin(methods: *const ffi::sqlite3_io_methods) -> &'static ffi::sqlite3_io_methods {
    let mut twins = FAILING.lock().unwrap();
    if let Some((_, twin)) = twins.iter().find(|(of, _)| *of == methods as usize) {
        return twin;
    }
    // SAFETY: the caller's promise; the table is plain data.
    let (honest, copy) = unsafe { (ptr::read(methods), ptr::read(methods)) };
    HONEST.get_or_init(|| honest);
    let failing = ffi::sqlite3_io_methods {
        xWrite: Some(write),
        xSync: Some(sync),
        xTruncate: Some(truncate),
        ..copy
    };
    let twin: &'static ffi::sqlite3_io_methods = Box::leak(Box::new(failing));
    twins.push((methods as usize, twin));
    twin
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    count: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let write = honest().xWrite.expect("a disk can write");
    if strikes() {
        if TORN.load(Ordering::SeqCst) {
            // SAFETY: as the caller's, for a part of the caller's bytes.
            unsafe { write(file, bytes, count / 2, offset) };
        }
        return ffi::SQLITE_FULL;
    }
    // SAFETY: the caller's arguments, passed on unchanged.
    unsafe { write(file, bytes, count, offset) }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    if strikes() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    // SAFETY: the caller's arguments, passed on unchanged.
    unsafe { honest().xSync.expect("a disk can sync")(file, flags) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    if strikes() {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    // SAFETY: the caller's arguments, passed on unchanged.
    unsafe { honest().xTruncate.expect("a disk can truncate")(file, size) }
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let vfs = *SYSTEM.get().expect("registered") as *mut ffi::sqlite3_vfs;
    // SAFETY: SQLite's own file system opens into the space the caller made for it; the size of
    // that space is the one SQLite's own table states, which ours copies.
    let outcome = unsafe { (*vfs).xOpen.expect("a disk can open")(vfs, name, file, flags, out) };
    // SAFETY: `file` is open if and only if its methods are set.
    unsafe {
        if outcome == ffi::SQLITE_OK && !(*file).pMethods.is_null() {
            (*file).pMethods = twin((*file).pMethods);
        }
    }
    outcome
}

/// Makes the failing file system the one that everything uses.
fn install() {
    static NAME: &CStr = c"failing";
    // SAFETY: plain calls of SQLite's; the table given to it is never freed.
    unsafe {
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
        let system = ffi::sqlite3_vfs_find(ptr::null());
        SYSTEM.set(system as usize).unwrap();
        let failing = ffi::sqlite3_vfs {
            zName: NAME.as_ptr(),
            pNext: ptr::null_mut(),
            xOpen: Some(open),
            ..ptr::read(system)
        };
        let registered = ffi::sqlite3_vfs_register(Box::into_raw(Box::new(failing)), 1);
        assert_eq!(registered, ffi::SQLITE_OK);
    }
}

fn settings(dir: &Path) -> JournalSettings {
    JournalSettings { dir: dir.to_owned(), budget_bytes: 1 << 20 }
}

/// Writes as the daemon does: after a failure the store is opened anew. Returns what was
/// acknowledged.
fn live_through(dir: &Path) -> Vec<u64> {
    let mut store = None;
    let mut acknowledged = Vec::new();
    for n in 1..=6 {
        if store.is_none() {
            store = Store::open(&settings(dir)).ok();
        }
        let entry = Entry::Event(Event { at: Uptime::from_millis(n), what: What::Ready });
        let batch = [Stamped { entry, wall: jiff::Timestamp::UNIX_EPOCH }];
        match store.as_mut().map(|store| store.append(&batch)) {
            Some(Ok(())) => acknowledged.push(n),
            Some(Err(_)) | None => store = None,
        }
    }
    acknowledged
}

#[test]
fn a_failed_or_torn_operation_at_any_point_loses_nothing_acknowledged() {
    install();
    let mut struck = 0;
    for (for_good, torn) in [(false, false), (false, true), (true, false), (true, true)] {
        FOR_GOOD.store(for_good, Ordering::SeqCst);
        TORN.store(torn, Ordering::SeqCst);
        for n in 0.. {
            let dir = tempfile::tempdir().unwrap();
            STRUCK.store(false, Ordering::SeqCst);
            LEFT.store(n, Ordering::SeqCst);
            let acknowledged = live_through(dir.path());
            LEFT.store(-1, Ordering::SeqCst);
            if !STRUCK.load(Ordering::SeqCst) {
                assert_eq!(acknowledged, [1, 2, 3, 4, 5, 6]);
                break;
            }
            struck += 1;
            drop(Store::open(&settings(dir.path())).expect("the daemon starts"));
            let archive = Archive::open(dir.path()).unwrap();
            assert_eq!(archive.gaps().unwrap(), [], "operation {n}: nothing was set aside");
            let found: Vec<u64> = archive
                .events(usize::MAX)
                .unwrap()
                .iter()
                .map(|e| e.event.at.as_millis())
                .collect();
            for event in &acknowledged {
                assert!(found.contains(event), "operation {n}: {event} is lost of {found:?}");
            }
            assert!(n < 10_000, "no end");
        }
    }
    assert!(struck > 100, "only {struck} operations failed");
}
