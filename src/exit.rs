//! Exit codes of both programs, from `sysexits.h`, so that a unit file can
//! tell failures that a restart may cure from those that it cannot.

/// How a program ends.
///
/// The systemd unit lists [`Usage`](Self::Usage), [`Data`](Self::Data),
/// [`NoInput`](Self::NoInput), [`TargetExists`](Self::TargetExists),
/// [`Permission`](Self::Permission) and [`Config`](Self::Config) in
/// `RestartPreventExitStatus`: only a person can cure those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// The data is wrong: corrupt, mismatched, in conflict (`EX_DATAERR`).
    Data = 65,
    /// There is no source to read (`EX_NOINPUT`).
    NoInput = 66,
    /// A bug in Aspen (`EX_SOFTWARE`).
    Software = 70,
    /// The target exists already (`EX_CANTCREAT`).
    TargetExists = 73,
    /// Input or output failed, or the disk is full (`EX_IOERR`).
    Io = 74,
    /// Another process holds a lock; try again later (`EX_TEMPFAIL`).
    Locked = 75,
    /// Not permitted (`EX_NOPERM`).
    Permission = 77,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

impl Exit {
    /// The number that the process exits with.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The exit code that fits an operating system error.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Self::Permission,
            _ => Self::Io,
        }
    }
}

/// What to do about an address that cannot be listened on.
pub(crate) fn cannot_listen(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "stop the program that listens there, or take another port"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "give an address that this machine has (`ip address`), and have it set up before"
        }
        std::io::ErrorKind::PermissionDenied => "take a port above 1023",
        _ => "give another address",
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
