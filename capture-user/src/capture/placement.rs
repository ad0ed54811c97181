//! Which core a worker runs on, where nobody says: beside the one that takes its queue's interrupts.
//!
//! The kernel takes frames from a NIC on the core of the queue's interrupt. A worker on the same core
//! waits meanwhile; on one that shares a cache with it, it finds frames where the kernel left them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tracing::info;

use crate::link::Link;

/// The core of each worker, out of `cores` and from the start again where there are more workers.
/// Where no interrupt is known (a virtual link has none) they come in order.
pub(super) fn choose(links: &[Link], workers: usize, cores: &[usize]) -> Vec<usize> {
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let mut interrupts: Vec<Vec<usize>> = vec![Vec::new(); workers];
    for link in links {
        for (queue, interrupt) in interrupts_of(&table, &owners(&link.name)) {
            let worker = interrupts.get_mut(queue as usize);
            if let Some((own, core)) = worker.zip(core_of(interrupt)) {
                own.push(core);
            }
        }
    }
    let all = interrupts.iter().flatten().chain(cores);
    let shared: BTreeMap<usize, Shared> = all.map(|core| (*core, Shared::of(*core))).collect();
    let placed = place(&interrupts, cores, |core, other| {
        shared.get(&core).zip(shared.get(&other)).map_or(FAR, |(core, other)| core.distance(other))
    });
    for ((worker, core), own) in placed.iter().enumerate().zip(&interrupts) {
        if !own.is_empty() {
            info!(worker, core, interrupts = ?own, "placed beside its queue's interrupts");
        }
    }
    placed
}

/// What an interface's interrupts may be called after: itself, or its device.
fn owners(iface: &str) -> Vec<String> {
    let device = fs::canonicalize(Path::new("/sys/class/net").join(iface).join("device")).ok();
    let device = device.as_deref().and_then(Path::file_name);
    let device = device.map(|name| name.to_string_lossy().into_owned());
    [iface.to_owned()].into_iter().chain(device).collect()
}

/// The interrupt of each receive queue that the table of `/proc/interrupts` knows.
fn interrupts_of(table: &str, owners: &[String]) -> BTreeMap<u32, u32> {
    let found = table.lines().filter_map(|line| {
        let number = line.split_once(':')?.0.trim().parse().ok()?;
        let name = line.split_whitespace().last()?;
        let queue = owners.iter().find_map(|owner| receive_queue(name, owner))?;
        Some((queue, number))
    });
    found.collect()
}

/// The receive queue that an interrupt's name speaks of. Drivers have their own ways:
/// `eth0-TxRx-3`, `i40e-eth0-TxRx-3`, `eth0-Tx-Rx-3`, `eth0-rx-3`, `virtio2-input.3`,
/// `mlx5_comp3@pci:0000:3b:00.0`.
fn receive_queue(name: &str, owner: &str) -> Option<u32> {
    let at = name.find(owner)?;
    let (before, after) = (name.get(..at)?, name.get(at + owner.len()..)?);
    let ends = |text: Option<char>| text.is_none_or(|next| !next.is_alphanumeric());
    if owner.is_empty() || !ends(before.chars().next_back()) || !ends(after.chars().next()) {
        return None;
    }
    let words = || before.split(apart).chain(after.split(apart)).filter(|word| !word.is_empty());
    let mut words = words().skip_while(|word| !receives(word));
    let kind = words.next()?;
    let digits = kind.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    if digits.is_empty() { words.next()?.parse().ok() } else { digits.parse().ok() }
}

fn apart(letter: char) -> bool {
    !letter.is_alphanumeric()
}

fn receives(word: &str) -> bool {
    let kind = word.trim_end_matches(|letter: char| letter.is_ascii_digit()).to_ascii_lowercase();
    ["rx", "txrx", "rxtx", "input", "comp"].contains(&kind.as_str())
}

/// The core that takes an interrupt.
fn core_of(interrupt: u32) -> Option<usize> {
    let dir = Path::new("/proc/irq").join(interrupt.to_string());
    let list = fs::read_to_string(dir.join("effective_affinity_list")).ok()?;
    list.trim().split([',', '-']).next()?.parse().ok()
}

/// Two cores that share their last cache.
const NEAR: u8 = 0;
/// Two threads of one core: the cache is near, but one waits for the other's work.
const SAME_CORE: u8 = 1;
/// Neither.
const FAR: u8 = 2;

/// Whom a core shares what with, as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
struct Shared {
    execution: Option<String>,
    cache: Option<String>,
}

impl Shared {
    fn of(core: usize) -> Self {
        let core = Path::new("/sys/devices/system/cpu").join(format!("cpu{core}"));
        let read = |what: &str| fs::read_to_string(core.join(what)).ok();
        let execution = read("topology/thread_siblings_list");
        Self { execution, cache: read("cache/index3/shared_cpu_list") }
    }

    fn distance(&self, other: &Self) -> u8 {
        if self.execution.is_some() && self.execution == other.execution {
            SAME_CORE
        } else if self.cache.is_some() && self.cache == other.cache {
            NEAR
        } else {
            FAR
        }
    }
}

/// The best core for each worker, given those that take the interrupts of its queues: rather one
/// with fewer workers, then not its own interrupts', then nobody's, then a near one.
fn place(
    interrupts: &[Vec<usize>],
    cores: &[usize],
    distance: impl Fn(usize, usize) -> u8,
) -> Vec<usize> {
    let anybodys: BTreeSet<usize> = interrupts.iter().flatten().copied().collect();
    let mut workers_on: BTreeMap<usize, usize> = BTreeMap::new();
    let best = interrupts.iter().filter_map(|own| {
        let core = *cores.iter().min_by_key(|core| {
            let distance = own.iter().map(|other| distance(**core, *other)).min();
            let workers = workers_on.get(*core).copied().unwrap_or(0);
            // Of equals the first.
            (workers, own.contains(*core), anybodys.contains(*core), distance)
        })?;
        *workers_on.entry(core).or_default() += 1;
        Some(core)
    });
    let mut placed: Vec<usize> = best.collect();
    // Whoever is left with its own changes places with one whom that does not hurt.
    let is_own =
        |worker: usize, core: usize| interrupts.get(worker).is_some_and(|own| own.contains(&core));
    for worker in 0..placed.len() {
        let other = (0..placed.len()).find(|other| {
            let cores = placed.get(worker).zip(placed.get(*other));
            cores.is_some_and(|(core, others)| {
                is_own(worker, *core) && !is_own(worker, *others) && !is_own(*other, *core)
            })
        });
        if let Some(other) = other {
            placed.swap(worker, other);
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_found_by_their_drivers_names() {
        let nic = "0000:3b:00.0";
        for (name, owner, queue) in [
            ("eth0-TxRx-3", "eth0", Some(3)),
            ("i40e-eth0-TxRx-11", "eth0", Some(11)),
            ("eth0-Tx-Rx-2", "eth0", Some(2)),
            ("eth0-rx-0", "eth0", Some(0)),
            ("virtio2-input.1", "virtio2", Some(1)),
            ("mlx5_comp7@pci:0000:3b:00.0", nic, Some(7)),
            ("eth0-tx-0", "eth0", None),
            ("virtio2-output.1", "virtio2", None),
            ("virtio2-config", "virtio2", None),
            ("mlx5_async0@pci:0000:3b:00.0", nic, None),
            ("eth10-TxRx-3", "eth1", None),
            ("eth1-TxRx-3", "eth10", None),
            ("virtio12-input.1", "virtio1", None),
            ("eth0", "eth0", None),
            ("eth0-rx", "eth0", None),
            ("", "eth0", None),
            ("eth0-rx-0", "", None),
        ] {
            assert_eq!(receive_queue(name, owner), queue, "{name} of {owner}");
        }
    }

    #[test]
    fn the_kernels_table_is_read() {
        let table = "           CPU0       CPU1       \n\
                     \x20 24:          1          0  IO-APIC   5-edge      ACPI:Ged\n\
                     \x20 38:          0      14239 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n\
                     \x20 39:       9922          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0\n\
                     \x20 40:          0          7 PCI-MSIX-0000:00:03.0   3-edge      virtio2-input.1\n\
                     LOC:    7892265    7567094   Local timer interrupts\n";
        let owners = ["eth0".to_owned(), "virtio2".to_owned()];
        assert_eq!(interrupts_of(table, &owners), BTreeMap::from([(0, 38), (1, 40)]));
        assert_eq!(interrupts_of("torn", &owners), BTreeMap::new());
    }

    /// Eight cores, four to a cache.
    fn two_caches(core: usize, other: usize) -> u8 {
        if core / 4 == other / 4 { NEAR } else { FAR }
    }

    #[test]
    fn a_worker_runs_beside_its_interrupts_and_near_them() {
        let cores: Vec<usize> = (0..8).collect();
        assert_eq!(place(&[vec![0]], &cores, two_caches), [1]);
        assert_eq!(place(&[vec![5]], &cores, two_caches), [4]);
        assert_eq!(place(&[vec![0], vec![4]], &cores, two_caches), [1, 5]);
        // Near ones are used up: rather far than on a core with interrupts or with another worker.
        let three = [vec![0], vec![1], vec![2]];
        assert_eq!(place(&three, &cores, two_caches), [3, 4, 5]);
    }

    #[test]
    fn the_other_thread_of_the_core_is_no_neighbour_to_have() {
        let threads = |core: usize, other: usize| {
            if core / 2 == other / 2 { SAME_CORE } else { two_caches(core, other) }
        };
        let cores: Vec<usize> = (0..8).collect();
        assert_eq!(place(&[vec![0]], &cores, threads), [2]);
        assert_eq!(place(&[vec![0]], &[0, 1], threads), [1], "but better than the same");
    }

    #[test]
    fn this_machine_says_what_its_cores_share() {
        let first = Shared::of(0);
        assert!(first.execution.is_some(), "{first:?}");
        assert_eq!(first.distance(&Shared::of(0)), SAME_CORE);
        let nobody = Shared { execution: None, cache: None };
        assert_eq!(nobody.distance(&nobody), FAR, "what is not known is not shared");
    }

    #[test]
    fn where_all_cores_take_interrupts_nobody_gets_his_own() {
        for count in 2..6 {
            let cores: Vec<usize> = (0..count).collect();
            let own: Vec<_> = cores.iter().map(|core| vec![*core]).collect();
            let placed = place(&own, &cores, two_caches);
            assert!(placed.iter().zip(&own).all(|(core, own)| !own.contains(core)), "{placed:?}");
            assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), count, "{placed:?}");
        }
        assert_eq!(place(&[vec![0]], &[0], two_caches), [0], "there is no other");
    }

    #[test]
    fn without_interrupts_cores_come_in_order_and_again() {
        let none = vec![Vec::new(); 5];
        assert_eq!(place(&none, &[2, 3, 7], two_caches), [2, 3, 7, 2, 3]);
        assert_eq!(place(&none, &[], two_caches), [0_usize; 0]);
    }
}
