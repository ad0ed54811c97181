//! Time and memory that a measurement takes, as the kernel accounts for them in /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

/// Time of the machine's cores since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cores(BTreeMap<usize, Core>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Core {
    /// Not idle, whatever for.
    busy: u64,
    /// Of this, in the kernel's softirq: receiving, above all.
    softirq: u64,
    /// Taken away by the host, on a virtual machine.
    stolen: u64,
}

/// Time that some cores have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// Not idle, whatever for.
    pub(crate) busy: Duration,
    /// Of this, in the kernel's softirq.
    pub(crate) softirq: Duration,
    /// Taken away by the host.
    pub(crate) stolen: Duration,
}

impl Cores {
    /// As it is now.
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let cores = text.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            let core = fields.next()?.strip_prefix("cpu")?.parse().ok()?;
            // user nice system idle iowait irq softirq steal
            let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
            let [user, nice, system, _, _, irq, softirq, stolen] = *ticks.first_chunk()?;
            Some((core, Core { busy: user + nice + system + irq + softirq, softirq, stolen }))
        });
        Self(cores.collect())
    }

    /// What some cores have used since an earlier look.
    pub(crate) fn since(&self, earlier: &Self, cores: &[usize]) -> Used {
        let mut sum = Core::default();
        for core in cores {
            let (Some(now), Some(then)) = (self.0.get(core), earlier.0.get(core)) else { continue };
            sum.busy += now.busy.saturating_sub(then.busy);
            sum.softirq += now.softirq.saturating_sub(then.softirq);
            sum.stolen += now.stolen.saturating_sub(then.stolen);
        }
        Used {
            busy: of_ticks(sum.busy),
            softirq: of_ticks(sum.softirq),
            stolen: of_ticks(sum.stolen),
        }
    }

    /// The cores there are.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        self.0.keys().copied().collect()
    }
}

/// Processor time of some processes and all that they have started; zero for those that are gone.
pub(crate) fn processor_time(processes: &[u32]) -> Duration {
    let ticks = tree(processes).into_iter().filter_map(|id| {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields = after_name(&text);
        Some(number(&fields, UTIME)? + number(&fields, STIME)?)
    });
    of_ticks(ticks.sum())
}

/// Processor time of all programs that this process has started and that have ended.
pub(crate) fn ended_time() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = after_name(&text);
    of_ticks(number(&fields, CUTIME).unwrap_or(0) + number(&fields, CSTIME).unwrap_or(0))
}

/// Memory that some processes and all that they have started have held at most, each at its own
/// time, in bytes: in the whole, and the part that is no file's.
pub(crate) fn memory(processes: &[u32]) -> Memory {
    tree(processes).iter().fold(Memory::default(), |sum, id| {
        let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let kibibytes = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            value.unwrap_or(0)
        };
        Memory {
            peak_bytes: sum.peak_bytes + kibibytes("VmHWM") * 1024,
            anonymous_bytes: sum.anonymous_bytes + kibibytes("RssAnon") * 1024,
        }
    })
}

/// Memory of a subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// At most so far, mapped files included.
    pub(crate) peak_bytes: u64,
    /// Now, without files.
    pub(crate) anonymous_bytes: u64,
}

/// Files that some processes and all that they have started have open or mapped.
pub(crate) fn open_files(processes: &[u32]) -> BTreeSet<PathBuf> {
    let mut open = BTreeSet::new();
    for id in tree(processes) {
        let descriptors = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        open.extend(descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()));
        let maps = fs::read_to_string(format!("/proc/{id}/maps")).unwrap_or_default();
        // address perms offset device inode path
        let paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
        open.extend(paths.map(PathBuf::from));
    }
    open
}

/// Some processes with their children and children's children.
fn tree(processes: &[u32]) -> Vec<u32> {
    let mut found = Vec::new();
    let mut rest = processes.to_vec();
    while let Some(id) = rest.pop() {
        found.push(id);
        let Ok(tasks) = fs::read_dir(format!("/proc/{id}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            rest.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
    }
    found
}

/// Places in `/proc/…/stat` behind the program's name (proc(5)).
const UTIME: usize = 11;
const STIME: usize = 12;
const CUTIME: usize = 13;
const CSTIME: usize = 14;

/// The fields behind the name, which may hold anything, even spaces and brackets.
fn after_name(text: &str) -> Vec<&str> {
    text.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect())
}

fn number(fields: &[&str], place: usize) -> Option<u64> {
    fields.get(place)?.parse().ok()
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read_by_core() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\n\
                    cpu0 100 0 200 5000 7 10 50 3 0 0\ncpu1 1 0 2 6000 0 0 0 0 0 0\nintr 12 4\n";
        let then = Cores::parse(text);
        let now = Cores::parse(&text.replace("100 0 200", "150 0 300").replace(" 50 3", " 75 4"));
        let used = now.since(&then, &[0]);
        let ticks = of_ticks;
        let expected = Used { busy: ticks(175), softirq: ticks(25), stolen: ticks(1) };
        assert_eq!(used, expected);
        assert_eq!(now.since(&then, &[1]), Used::default());
        assert_eq!(now.numbers(), [0, 1]);
    }

    #[test]
    fn a_process_has_used_time_and_memory() {
        let own = [std::process::id()];
        let before = processor_time(&own);
        let mut sum = 0_u64;
        while processor_time(&own) == before {
            sum = std::hint::black_box(sum + 1);
        }
        let memory = memory(&own);
        assert!(memory.anonymous_bytes > 0 && memory.peak_bytes >= memory.anonymous_bytes);
        assert_eq!(processor_time(&[0]), Duration::ZERO);
    }

    #[test]
    fn names_with_brackets_do_not_confuse() {
        let fields = after_name("12 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 77 88 99 100");
        assert_eq!(number(&fields, UTIME), Some(77));
        assert_eq!(number(&fields, CSTIME), Some(100));
    }
}
