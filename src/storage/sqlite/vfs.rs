//! SQLite's own VFS, but for the file of the write-ahead log: a commit is one write to it,
//! or one for each 128 KiB.
//!
//! For the connection that writes; every other one of the process uses SQLite's own, with
//! the same locks and the same index of the log. Which writes are held and for how long:
//! [`frames`](super::frames). Whatever else concerns the contents of the log's file is asked
//! of SQLite's own file, after what is held was written.
//!
//! The rules for what SQLite calls here: <https://sqlite.org/vfs.html>.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use rusqlite::{Connection, ffi};

use super::frames::Frames;
use crate::format::sqlite;

/// The name to open a connection with, once [`register`] was called.
pub(super) const NAME: &CStr = c"aspen";

/// The log's file as SQLite has it. The file of SQLite's own VFS lies right behind.
#[repr(C)]
struct Log {
    base: ffi::sqlite3_file,
    /// From [`open`] to [`close`].
    frames: *mut Frames,
}

const _: () = assert!(size_of::<Log>().is_multiple_of(align_of::<i64>()));

/// SQLite's own file behind that of a log.
///
/// # Safety
/// `file` is one that [`open`] has made.
unsafe fn own(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: `szOsFile` makes SQLite allocate both in one piece.
    unsafe { file.byte_add(size_of::<Log>()) }
}

/// Calls a method of SQLite's own file.
macro_rules! call {
    ($file:ident, $method:ident $(, $argument:expr)*) => {{
        // SAFETY: only what SQLite calls with a file of `open`'s uses this, and hands on
        // the arguments that SQLite gave, or some that are as good.
        unsafe {
            let own = own($file);
            match (*(*own).pMethods).$method {
                Some(method) => method(own $(, $argument)*),
                None => ffi::SQLITE_IOERR,
            }
        }
    }};
}

/// # Safety
/// `file` is one that [`open`] has made and that is not closed. SQLite makes one call at a
/// time for a connection, and nothing keeps what this answers for longer than a call.
unsafe fn frames<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Frames {
    // SAFETY: as above; `open` has allocated it.
    unsafe { &mut *(*file.cast::<Log>()).frames }
}

/// # Safety
/// `file` is one that [`open`] has made and that is not closed.
unsafe fn write_own(file: *mut ffi::sqlite3_file, bytes: &[u8], offset: i64) -> c_int {
    let Ok(amount) = c_int::try_from(bytes.len()) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    call!(file, xWrite, bytes.as_ptr().cast(), amount, offset)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    let Ok(amount) = usize::try_from(amount) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    // SAFETY: SQLite gives `amount` bytes, and a file of `open`'s.
    unsafe {
        let bytes = std::slice::from_raw_parts(from.cast::<u8>(), amount);
        frames(file).write(bytes, offset, |bytes, offset| {
            write_own(file, bytes, offset)
        })
    }
}

/// # Safety
/// `file` is one that [`open`] has made and that is not closed.
unsafe fn settle(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: as above.
    unsafe { frames(file).settle(|bytes, offset| write_own(file, bytes, offset)) }
}

/// What is held is written only where it is asked for: rolling back reads other pages,
/// and needs no space on the disk.
unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    to: *mut c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    let wanted = usize::try_from(amount).unwrap_or(usize::MAX);
    // SAFETY: SQLite calls with a file of `open`'s.
    let settled = unsafe {
        match frames(file).holds(wanted, offset) {
            true => settle(file),
            false => ffi::SQLITE_OK,
        }
    };
    match settled {
        ffi::SQLITE_OK => call!(file, xRead, to, amount, offset),
        failed => failed,
    }
}

/// The method of SQLite's own file, after what is held was written.
macro_rules! after_writing {
    ($name:ident, $method:ident $(, $argument:ident: $type:ty)*) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $argument: $type)*) -> c_int {
            // SAFETY: SQLite calls with a file of `open`'s.
            match unsafe { settle(file) } {
                ffi::SQLITE_OK => call!(file, $method $(, $argument)*),
                failed => failed,
            }
        }
    };
}

after_writing!(truncate, xTruncate, size: i64);
after_writing!(sync, xSync, flags: c_int);
after_writing!(file_size, xFileSize, size: *mut i64);
after_writing!(lock, xLock, level: c_int);
after_writing!(unlock, xUnlock, level: c_int);
after_writing!(check_reserved_lock, xCheckReservedLock, is_reserved: *mut c_int);
after_writing!(file_control, xFileControl, operation: c_int, argument: *mut c_void);

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    call!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    call!(file, xDeviceCharacteristics)
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `open` has allocated it, and SQLite closes a file once.
    drop(unsafe { Box::from_raw((*file.cast::<Log>()).frames) });
    call!(file, xClose)
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    // The index of the log belongs to the database's file, as mapped pages do.
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// Any other file than the log's is SQLite's own, with nothing in between.
unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    opened: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives what `xOpen` wants, and `file` has room for both files.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(sqlite::VFS.as_ptr());
        let Some(open) = vfs.as_ref().and_then(|vfs| vfs.xOpen) else {
            return ffi::SQLITE_CANTOPEN;
        };
        if flags & ffi::SQLITE_OPEN_WAL == 0 {
            return open(vfs, name, file, flags, opened);
        }
        // Without methods, a file was not opened and is not closed.
        (*file).pMethods = ptr::null();
        let code = open(vfs, name, own(file), flags, opened);
        if code == ffi::SQLITE_OK {
            file.cast::<Log>().write(Log {
                base: ffi::sqlite3_file {
                    pMethods: &raw const METHODS,
                },
                frames: Box::into_raw(Box::default()),
            });
        }
        code
    }
}

/// Makes SQLite know the VFS, once in a process.
pub(super) fn register() -> rusqlite::Result<()> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    let code = *REGISTERED.get_or_init(|| {
        // SAFETY: SQLite's own VFS is there for good. Its methods but `xOpen`, which gets
        // its own from `open`, use nothing of the VFS that they are called with. What is
        // registered is never freed.
        unsafe {
            let own = ffi::sqlite3_vfs_find(sqlite::VFS.as_ptr());
            if own.is_null() {
                return ffi::SQLITE_NOTFOUND;
            }
            let own = own.read();
            let Ok(size) = c_int::try_from(size_of::<Log>()) else {
                return ffi::SQLITE_MISUSE;
            };
            let vfs = ffi::sqlite3_vfs {
                zName: NAME.as_ptr(),
                szOsFile: own.szOsFile + size,
                xOpen: Some(open),
                ..own
            };
            ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0)
        }
    });
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Forgets what is held, after a transaction of the connection was rolled back.
pub(super) fn forget(connection: &Connection) {
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    // SAFETY: the connection is open; SQLite writes a pointer to its log's file, which
    // lives as long, or to that of its rollback journal, whose methods are others.
    unsafe {
        let code = ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_JOURNAL_POINTER,
            (&raw mut file).cast(),
        );
        if code == ffi::SQLITE_OK
            && !file.is_null()
            && ptr::eq((*file).pMethods, &raw const METHODS)
        {
            frames(file).forget();
        }
    }
}
