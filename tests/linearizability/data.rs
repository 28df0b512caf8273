//! What nodes hold in the end.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::common::client::Client;
use crate::site::{Site, eventually};

impl Site {
    /// Waits until nodes have applied the same entries; what they then hold must
    /// be the same, and is returned.
    pub(crate) fn same_data(&self) -> BTreeMap<String, String> {
        eventually("the nodes never apply the same", || {
            let applied = || {
                self.ids()
                    .into_iter()
                    .map(|id| self.status(id)?["last_applied"].as_u64())
            };
            let applied: Option<Vec<u64>> = applied().collect();
            let applied = applied?;
            applied.windows(2).all(|two| two[0] == two[1]).then_some(())
        });
        let digests = self.ids().into_iter().map(|id| self.digest(id));
        let digests: Vec<_> = digests.collect();
        assert!(
            digests.windows(2).all(|two| two[0] == two[1]),
            "{digests:#?}"
        );
        let mut data = self.ids().into_iter().map(|id| (id, self.holds(id)));
        let (_, first) = data.next().unwrap();
        for (id, other) in data {
            assert!(
                first == other,
                "node {id} does not hold what the first one does"
            );
        }
        first
    }

    /// Digests of what a node itself holds, and of the names of writes that it remembers.
    fn digest(&self, id: u64) -> [Json; 2] {
        let answer = Client::new(self.http(id))
            .ask("GET", "/admin/digest", None)
            .unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        ["checksum", "idempotency_checksum"].map(|field| answer.json()[field].clone())
    }

    /// Everything that a node itself holds.
    fn holds(&self, id: u64) -> BTreeMap<String, String> {
        let mut client = Client::new(self.http(id));
        let (mut pairs, mut after) = (BTreeMap::new(), String::new());
        loop {
            let target = format!("/api/kv?limit=1000&consistency=stale{after}");
            let page = client.ask("GET", &target, None).unwrap();
            assert_eq!(page.status, 200, "{page:?}");
            let page = page.json();
            for pair in page["pairs"].as_array().unwrap() {
                let text = |field: &str| pair[field].as_str().unwrap().to_owned();
                pairs.insert(text("key"), text("value"));
            }
            match page["next"].as_str() {
                Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
                None => return pairs,
            }
        }
    }
}
