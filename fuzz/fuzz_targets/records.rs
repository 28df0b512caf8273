//! Whatever a record holds, it is refused or is exactly what is written for it.
#![no_main]

use aspen::format::entry::{Entry, Vote};
use aspen::format::idempotency::Record;
use aspen::format::record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(entry) = Entry::decode(bytes) {
        let again = Entry::decode(&entry.encode().expect("encodes"));
        assert_eq!(again.expect("decodes"), entry);
    }
    if let Ok(remembered) = Record::decode(bytes) {
        assert_eq!(remembered.encode().expect("encodes"), bytes);
        // However damaged, its numbers do not end the node.
        let next = Record::after(Some(&remembered), "key", 0, remembered.result.clone());
        let _ = next.displaces(&remembered);
    }
    if let Ok(vote) = Vote::decode(bytes) {
        assert_eq!(vote.encode().expect("encodes"), bytes);
    }
    if let Ok(id) = record::last_applied(bytes) {
        assert_eq!(record::encode_last_applied(id).expect("encodes"), bytes);
    }
    if let Ok(membership) = record::membership(bytes) {
        let again = record::encode_membership(&membership).expect("encodes");
        assert_eq!(record::membership(&again).expect("decodes"), membership);
    }
});
