//! The events that an operator may want to find, each with its own 128-bit
//! `MESSAGE_ID` that never changes.
//!
//! `journalctl MESSAGE_ID=...` finds them, `journalctl -x` explains them with
//! the text in `systemd/aspen.catalog`, whose `@FIELD@` references are filled
//! from the fields of the event. So whoever emits an event gives it its
//! constant and the fields listed beside it, and says everything in the message
//! too, because text output shows neither:
//!
//! ```
//! use aspen::telemetry::events;
//!
//! let (keys, milliseconds) = (1234_u64, 87_u64);
//! tracing::info!(
//!     target: "aspen::migration",
//!     MESSAGE_ID = events::MIGRATION_PHASE,
//!     ASPEN_PHASE = "copy",
//!     ASPEN_KEYS = keys,
//!     ASPEN_DURATION_MS = milliseconds,
//!     "Copied {keys} keys in {milliseconds} ms",
//! );
//! ```
//!
//! The rules: a message is one line (a line break comes out as `\n`), a path or
//! an error in a field is written `%path.display()`, and no value, token or
//! content of a key appears above debug level, in a message or in a field.

/// One event: what it is called here, its `MESSAGE_ID`, and the journal fields
/// that it carries besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The name of the constant in this module.
    pub name: &'static str,
    /// The `MESSAGE_ID`: 32 lower-case hexadecimal digits.
    pub id: &'static str,
    /// The fields that an entry in the catalog may refer to.
    pub fields: &'static [&'static str],
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $id:literal [$($first:ident $(, $field:ident)*)?];)*) => {
        $($(#[$doc])*
        #[doc = ""]
        $(#[doc = concat!("Fields: `", stringify!($first), "`" $(, ", `", stringify!($field), "`")*, ".")])?
        pub const $name: &str = $id;)*

        /// Every event in this module, in the order in which a start meets them.
        pub const ALL: &[Event] = &[$(Event {
            name: stringify!($name),
            id: $id,
            fields: &[$(stringify!($first) $(, stringify!($field))*)?],
        }),*];
    };
}

events! {
    /// The daemon has its settings and begins to start.
    NODE_STARTING = "f01604491e4247c6bc0832d1c2df1732" [ASPEN_VERSION, ASPEN_NODE_ID, ASPEN_DATA_DIR];
    /// The configuration file and the environment or command line disagree; which of them won.
    CONFIG_CONTRADICTION = "5013be15716e4e74b0f00b5323f79060" [ASPEN_SETTING, ASPEN_CONFIG];
    /// The log file cannot be opened or written.
    LOG_FILE_UNAVAILABLE = "66253629e5ca4e0f9aac63e69b4d4b93" [ASPEN_LOG_FILE];
    /// The certificate has expired or soon will, or its key is not kept well.
    CERTIFICATE_DOUBTFUL = "7efd73bf94e641beb3fc6fc97455ccc1" [ASPEN_CERTIFICATE];
    /// Another process holds the data directory.
    DATA_DIR_LOCKED = "50cb105b368640b093c0670ce845cd77" [ASPEN_DATA_DIR];
    /// What is on disk and what is configured leave a choice that only a person can make.
    START_REFUSED = "74bea29056334eed98e23015e36ab527" [ASPEN_DATA_DIR, ASPEN_EXIT];
    /// The node runs on the legacy redb backend.
    BACKEND_DEPRECATED = "abd69cb35e12499bb81964bd3e0d13f3" [ASPEN_SOURCE];
    /// A migration has begun.
    MIGRATION_STARTED = "ce432f905011437a915a4f3294a7106f" [ASPEN_SOURCE, ASPEN_TARGET, ASPEN_BYTES];
    /// One phase of a migration is done.
    MIGRATION_PHASE = "39f425fd0afd43c8a83e27be4b74c522" [ASPEN_PHASE, ASPEN_KEYS, ASPEN_BYTES, ASPEN_DURATION_MS];
    /// The source has a durable backup.
    MIGRATION_BACKUP = "8f8decaa1f1b4c1c9194f2ebfcaf2ba3" [ASPEN_SOURCE, ASPEN_BACKUP, ASPEN_BYTES];
    /// A damage of the source that touches no row was mended in memory.
    SOURCE_REBUILT = "840f927ed7c547b78616c66525f801a9" [ASPEN_SOURCE];
    /// The source of a migration is damaged.
    SOURCE_DAMAGED = "f6c616980dad4fbea332c4172ce46d8a" [ASPEN_SOURCE];
    /// The legacy Raft log is in the current file format.
    RAFT_LOG_TAKEN_OVER = "a3244b3c19024bfdaf52fc352a16012f" [ASPEN_SOURCE, ASPEN_BACKUP, ASPEN_FORMAT_FROM, ASPEN_FORMAT_TO, ASPEN_ENTRIES, ASPEN_DURATION_MS];
    /// A migration is complete: verified, published, recorded.
    MIGRATION_COMPLETED = "1eafa8d1880e457aaeb0f88c97fc8bb6" [ASPEN_SOURCE, ASPEN_TARGET, ASPEN_BACKUP, ASPEN_KEYS, ASPEN_CHECKSUM, ASPEN_DURATION_MS];
    /// A migration is complete, and its record could not be written or read everywhere.
    RECORD_NOT_WRITTEN = "4adeac9070ad423880a91e2a2c9c8ee3" [ASPEN_DATA_DIR];
    /// A migration failed; the source is as it was.
    MIGRATION_FAILED = "0354f15b63ac4fc498fac7ca82b88893" [ASPEN_SOURCE, ASPEN_PHASE, ASPEN_EXIT];
    /// A migration was stopped on request; the source is as it was.
    MIGRATION_INTERRUPTED = "e8cf0f607520428c893324924c516790" [ASPEN_SOURCE, ASPEN_PHASE];
    /// What an interrupted migration left half-made was removed.
    LEFTOVERS_REMOVED = "822c68d497bf4ee08486dc9566ae752a" [ASPEN_DATA_DIR, ASPEN_COUNT];
    /// Backups beyond those to keep were removed.
    BACKUPS_REMOVED = "b83987fbf612483fafbf0916835a615e" [ASPEN_DATA_DIR, ASPEN_COUNT];
    /// Backups beyond those to keep could not be removed.
    BACKUPS_NOT_REMOVED = "1977239cd237466196a08c5b5f949fb5" [ASPEN_DATA_DIR];
    /// The configuration file now says what was migrated.
    CONFIG_REWRITTEN = "fbd03e7f1f01412dae6348b7f702bd12" [ASPEN_CONFIG];
    /// The configuration file should say what was migrated and could not be written.
    CONFIG_NOT_REWRITTEN = "2948d5f7e3674185989d06a29838c190" [ASPEN_CONFIG];
    /// The state machine's storage is open; see [`storage_initialized`].
    STORAGE_INITIALIZED = "790a06756d6b4d16bf9b0c7bb541a2ab" [ASPEN_STORAGE];
    /// The state machine is loaded; see [`state_machine_loaded`].
    STATE_MACHINE_LOADED = "53af3064fb284c8f863883b55c6fe9d6" [ASPEN_LAST_APPLIED];
    /// There is data and no Raft log; a new log begins behind it.
    RAFT_LOG_MISSING = "1e8136bc3428492786e8b498abea314c" [ASPEN_PATH, ASPEN_LAST_APPLIED];
    /// The service manager expects a sign of life at intervals, and gets it.
    WATCHDOG_ENABLED = "1a6c7886e3824d50b3a6b4653ad4d796" [ASPEN_INTERVAL_MS];
    /// The node serves.
    NODE_READY = "9eb8feee0a7b48d8ae512242dc0bb760" [ASPEN_STORAGE, ASPEN_HTTP_LISTEN, ASPEN_DURATION_MS];
    /// This node leads.
    LEADERSHIP_GAINED = "f86b6cfb52074a08b6369eb0391d7aa6" [ASPEN_LEADER, ASPEN_TERM];
    /// This node leads no more; the leader is absent where none is known.
    LEADERSHIP_LOST = "f93c6b27f5cd4bf7bd272558e6a1b554" [ASPEN_LEADER, ASPEN_TERM];
    /// A leader that stops could not hand over in time; the others elect one.
    LEADERSHIP_NOT_HANDED_OVER = "2fc67c89d9114f0a9a4216a60521c874" [ASPEN_TERM];
    /// Another node leads.
    LEADER_CHANGED = "41598a18c3d94d1681a6fcf268550a5a" [ASPEN_LEADER, ASPEN_TERM];
    /// There was a leader and none is known any more.
    LEADER_UNKNOWN = "a8c9d2c8cb6d43fcbe0418355070ef10" [ASPEN_TERM];
    /// A member has come to the cluster.
    MEMBER_ADDED = "6ed13e0749a84e4086d8ce0242d24316" [ASPEN_MEMBER, ASPEN_PEER_ADDRESS, ASPEN_VOTER];
    /// A member votes now, votes no more, or has another address.
    MEMBER_CHANGED = "c96913fa8d2b418b99f04dc7e6f88abe" [ASPEN_MEMBER, ASPEN_PEER_ADDRESS, ASPEN_VOTER];
    /// A member has left the cluster.
    MEMBER_REMOVED = "1deb9519c8424b5ab43585df39f5d7f5" [ASPEN_MEMBER];
    /// This node is a member of its cluster no more.
    NODE_REMOVED = "ef01b85ad54249e384781dc204d50caf" [ASPEN_MEMBER];
    /// This node's id was known with other data; it takes no part in the cluster.
    NODE_BARRED = "3f04b424ac964df08a13e04d04ecf6f9" [ASPEN_MEMBER];
    /// A member lacks entries that it has confirmed to this leader; it is talked to no more.
    MEMBER_FORGOT = "f146021f22c443d09aa08a4b1c04143e" [ASPEN_MEMBER];
    /// Another node is reached, at first or again.
    PEER_CONNECTED = "74a571d8c84c487c93bcc57c68f654c1" [ASPEN_MEMBER, ASPEN_PEER_ADDRESS];
    /// Another node cannot be reached.
    PEER_UNREACHABLE = "d7e8d43dac5444fdb6938c71be6a41e9" [ASPEN_MEMBER, ASPEN_PEER_ADDRESS];
    /// Somebody at the address for other nodes was refused.
    PEER_REFUSED = "26750f6ee1d540d88f85a672d17b541b" [ASPEN_PEER_ADDRESS];
    /// Another node of the cluster said what this one does not understand.
    PEER_MISUNDERSTOOD = "49af2173851a49268cf139d75f614568" [ASPEN_MEMBER];
    /// The address for other nodes cannot be listened on.
    PEER_LISTENER_FAILED = "8451a43e765443d28ec71f99069b4fa5" [ASPEN_PEER_ADDRESS];
    /// Another node has got the whole state, because the log does not reach back far enough for it.
    SNAPSHOT_SENT = "b44f4aa190764dfb986197fcca56bf47" [ASPEN_MEMBER, ASPEN_BYTES, ASPEN_DURATION_MS];
    /// This node has got the whole state from its leader.
    SNAPSHOT_INSTALLED = "32944e9a77aa4f49ab6b5c2e9c6c908f" [ASPEN_MEMBER, ASPEN_BYTES, ASPEN_DURATION_MS];
    /// A snapshot could not be sent or taken.
    SNAPSHOT_FAILED = "c53ca6cd691b47a48bb0097d29209b08" [ASPEN_MEMBER];
    /// The disk is full, or nearly: no write is taken, or those under way wait.
    DISK_FULL = "a31e75aae67c4cf285f26c1e1da72802" [];
    /// There is space again after the disk was full.
    DISK_RECOVERED = "773a5050f01546dfbc7dce017fdb6188" [];
    /// The write-ahead log went into the database; routine ones are added up.
    WAL_CHECKPOINT = "e8d50e25128147e495f54a9ee757d080" [ASPEN_PAGES, ASPEN_WAL_BYTES, ASPEN_DURATION_MS];
    /// The write-ahead log grows, because something reads an old state, or cannot be checkpointed.
    WAL_LARGE = "fefce159299040448f1b24ef1de781d5" [ASPEN_PATH, ASPEN_WAL_BYTES];
    /// A file of the node failed.
    STORAGE_FAILED = "ce2cbeb69e7c47de81eab237efeaa740" [];
    /// Another process holds the database's write lock.
    DATABASE_BUSY = "cfa5afcff1934fb9b710ab658c899a0b" [ASPEN_PATH];
    /// A backup was sent to its end.
    BACKUP_SENT = "20d64adb0cf24001bd855b2bea0329f2" [ASPEN_BYTES, ASPEN_LAST_APPLIED, ASPEN_DURATION_MS];
    /// A backup broke off, or could not be made.
    BACKUP_FAILED = "b0f6255d25fe4f2eac93600bd6292436" [];
    /// Clients open more connections than the node takes.
    CONNECTIONS_EXHAUSTED = "03bd4cf4adbf45c0917d86d52acc7495" [ASPEN_CONNECTIONS];
    /// The system lets the node open no more connections.
    DESCRIPTORS_EXHAUSTED = "47c17823400e46418ae468b593021541" [];
    /// A newer certificate could not be taken over.
    CERTIFICATE_KEPT = "6dcbb9c0cd4f4927b60281e307d4eeba" [ASPEN_CERTIFICATE];
    /// What can be reloaded was; the message says what needs a restart.
    RELOADED = "99249c65a6d649959c5ef097fd54c85b" [ASPEN_CONFIG];
    /// The configuration was to be reloaded and is wrong.
    NOT_RELOADED = "37107dc11bf84280a9af98e5019689a4" [ASPEN_CONFIG];
    /// The node has been asked to stop.
    NODE_STOPPING = "8dca801a81ee49bd9b03b85e45f3a0d5" [ASPEN_CAUSE];
    /// Requests or consensus did not end in time when the node stopped.
    REQUESTS_CUT_OFF = "fc8317ecceb94ecc9b46f226caf45656" [];
    /// The node has stopped as asked.
    NODE_STOPPED = "265044c8b6a84493a009b5fe08067bbb" [ASPEN_DURATION_MS];
    /// The node could not start, or could not go on.
    NODE_FAILED = "2e1c68e8981a4a0abeafebfb7a2696be" [ASPEN_EXIT];
}

/// Emits the line by which operators tell that the configured backend is in
/// use: `INFO aspen::raft: Storage backend initialized: sqlite`.
pub fn storage_initialized(backend: &str) {
    tracing::info!(
        target: "aspen::raft",
        MESSAGE_ID = STORAGE_INITIALIZED,
        ASPEN_STORAGE = backend,
        "Storage backend initialized: {backend}",
    );
}

/// Emits the line by which operators tell that the data is there:
/// `INFO aspen::raft: State machine loaded: last_applied=1234`.
///
/// `last_applied` is the index of the last entry applied. A node that has
/// applied none says `last_applied=none`: index 0 is an entry like any other.
pub fn state_machine_loaded(last_applied: Option<u64>) {
    let shown = last_applied.map_or_else(|| "none".to_owned(), |index| index.to_string());
    tracing::info!(
        target: "aspen::raft",
        MESSAGE_ID = STATE_MACHINE_LOADED,
        ASPEN_LAST_APPLIED = last_applied,
        "State machine loaded: last_applied={shown}",
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    const CATALOG: &str = include_str!("../../systemd/aspen.catalog");

    /// One entry of the catalog: its header fields, and the text below them.
    #[derive(Default)]
    struct Entry {
        header: BTreeMap<String, String>,
        text: String,
    }

    /// Reads the catalog as systemd does: an entry begins at `-- ID` after an
    /// empty line, its header ends at the next empty line, `#` is a comment.
    fn catalog() -> Vec<(String, Entry)> {
        let mut entries: Vec<(String, Entry)> = Vec::new();
        let (mut after_empty, mut in_header) = (true, false);
        for line in CATALOG.lines().filter(|line| !line.starts_with('#')) {
            if let Some(id) = line.strip_prefix("-- ").filter(|_| after_empty) {
                entries.push((id.to_owned(), Entry::default()));
                in_header = true;
            } else if let Some((_, entry)) = entries.last_mut() {
                if in_header && !line.is_empty() {
                    let (name, value) = line.split_once(": ").expect("a header line");
                    entry.header.insert(name.to_owned(), value.to_owned());
                } else {
                    in_header = false;
                    entry.text.push_str(line);
                    entry.text.push('\n');
                }
            }
            after_empty = line.is_empty();
        }
        entries
    }

    #[test]
    fn ids_are_128_bits_and_no_two_are_the_same() {
        let ids: BTreeSet<_> = ALL.iter().map(|event| event.id).collect();
        assert_eq!(ids.len(), ALL.len());
        for event in ALL {
            assert_eq!(event.id.len(), 32, "{}", event.name);
            let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            assert!(event.id.bytes().all(lower), "{}", event.name);
        }
    }

    #[test]
    fn every_event_has_one_catalog_entry_and_every_entry_an_event() {
        let explained: Vec<_> = catalog().into_iter().map(|(id, _)| id).collect();
        let ids: Vec<_> = ALL.iter().map(|event| event.id.to_owned()).collect();
        assert_eq!(explained, ids, "the catalog is in the order of `ALL`");
    }

    #[test]
    fn every_catalog_entry_says_what_happened_and_what_to_do() {
        for (id, entry) in catalog() {
            let header: Vec<_> = entry.header.keys().map(String::as_str).collect();
            assert_eq!(
                header,
                ["Defined-By", "Documentation", "Subject", "Support"],
                "{id}"
            );
            assert_eq!(entry.header["Defined-By"], "Aspen", "{id}");
            let paragraphs = entry.text.trim().split("\n\n").count();
            assert!(paragraphs >= 2, "{id}: an explanation, then what to do");
            assert!(entry.text.lines().all(|line| line.len() <= 80), "{id}");
        }
    }

    #[test]
    fn catalog_entries_refer_only_to_fields_that_their_event_carries() {
        for ((id, entry), event) in catalog().into_iter().zip(ALL) {
            let all = format!("{}\n{}", entry.header["Subject"], entry.text);
            let pieces: Vec<_> = all.split('@').collect();
            assert_eq!(pieces.len() % 2, 1, "{id}: an unpaired @");
            for field in pieces.iter().skip(1).step_by(2) {
                assert!(
                    event.fields.contains(field),
                    "{} does not carry {field}",
                    event.name
                );
            }
        }
    }

    #[test]
    fn the_lines_of_the_guide_are_emitted_as_written() {
        let lines = crate::telemetry::tests::text_of("info", || {
            storage_initialized("sqlite");
            state_machine_loaded(Some(1234));
            state_machine_loaded(None);
        });
        assert_eq!(
            lines,
            [
                " INFO aspen::raft: Storage backend initialized: sqlite",
                " INFO aspen::raft: State machine loaded: last_applied=1234",
                " INFO aspen::raft: State machine loaded: last_applied=none",
            ]
        );
    }
}
