//! What a program itself says that it has lost: held against what it really lost, it shows whether
//! its counters can be believed.

use stillwire_tests::Account;
use stillwire_tests::process::Ended;

use super::found::BareCount;
use super::{Kind, Part, Place};

impl Part {
    /// Frames that the program says it has lost; `None` where it says nothing that we understand.
    pub(crate) fn claims(&self, place: &Place<'_>, ended: &Ended) -> Option<u64> {
        match &self.kind {
            Kind::Stillwire => Account::of(&place.dir.join("store")).ok().map(|all| all.lost),
            Kind::Bare => {
                let count: BareCount = serde_json::from_str(&ended.stdout).ok()?;
                Some(count.ring_full + count.dropped)
            }
            // "12 packets dropped by kernel", and by interface where there is such a counter.
            Kind::Tcpdump => {
                let dropped =
                    |by: &str| number_before(&ended.stderr, &format!(" packets dropped by {by}"));
                Some(dropped("kernel")? + dropped("interface").unwrap_or(0))
            }
            // "Packets received/dropped on interface 'tap0': 90/10 (pcap:10/dumpcap:0/…) (90.0%)"
            Kind::Dumpcap => {
                let (_, after) =
                    ended.stderr.split_once("Packets received/dropped on interface")?;
                let (_, after) = after.split_once(": ")?;
                let (_, dropped) = after.split_once('/')?;
                leading_number(dropped)
            }
            // "12  packets failed filter (out of space)"
            Kind::NetsniffNg => {
                let told = format!("{}{}", ended.stdout, ended.stderr);
                number_before(&told, "  packets failed filter (out of space)")
            }
            // Its management records have a counter, which libpcap's statistics fill.
            Kind::Argus | Kind::Softflowd | Kind::Template(_) => None,
        }
    }
}

/// The number directly before some words.
fn number_before(text: &str, words: &str) -> Option<u64> {
    let (before, _) = text.split_once(words)?;
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    before.get(before.len() - digits..)?.parse().ok()
}

/// The number that a text begins with.
fn leading_number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn claimed(kind: Kind, stderr: &str) -> Option<u64> {
        let ended = Ended { code: Some(0), stdout: String::new(), stderr: stderr.to_owned() };
        let place = Place {
            iface: "",
            dir: Path::new("/nowhere"),
            stillwired: Path::new(""),
            sessions: 1,
            budget: None,
        };
        Part { kind, options: Vec::new() }.claims(&place, &ended)
    }

    #[test]
    fn the_peers_words_are_understood() {
        let told = "90 packets captured\n100 packets received by filter\n\
                    10 packets dropped by kernel\n2 packets dropped by interface\n";
        assert_eq!(claimed(Kind::Tcpdump, told), Some(12));
        assert_eq!(claimed(Kind::Tcpdump, "tcpdump: no such device"), None);
        let told = "Packets captured: 90\nPackets received/dropped on interface 'tap0': \
                    90/10 (pcap:10/dumpcap:0/flushed:0/ps_ifdrop:0) (90.0%)\n";
        assert_eq!(claimed(Kind::Dumpcap, told), Some(10));
        let told = "       100  packets incoming (0 unread on exit)\n        \
                    90  packets passed filter\n        10  packets failed filter (out of space)\n";
        assert_eq!(claimed(Kind::NetsniffNg, told), Some(10));
    }
}
