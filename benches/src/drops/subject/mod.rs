//! The capture programs that are measured: how each is started, when it is ready, and which
//! foreign reader counts what it has recorded.

mod claims;
mod found;
mod harvest;
mod netflow;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use stillwire_tests::process::Ended;

use super::line::Line;

pub(crate) use found::{BareCount, Found};
pub(crate) use harvest::Harvest;
pub(crate) use netflow::Collector;

/// What one measurement compares: a program, or several that run side by side.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// What the report calls it.
    pub(crate) label: String,
    /// Its programs.
    pub(crate) parts: Vec<Part>,
}

/// One program of a subject.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    kind: Kind,
    /// Options that were added to ours.
    options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Stillwire,
    Bare,
    Tcpdump,
    Dumpcap,
    NetsniffNg,
    Argus,
    Softflowd,
    Template(String),
}

/// Where a program runs, and where it writes.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    /// The interface.
    pub(crate) iface: &'a str,
    /// A directory of its own.
    pub(crate) dir: &'a Path,
    /// The sensor's program.
    pub(crate) stillwired: &'a Path,
    /// Sessions that a program has to keep at once.
    pub(crate) sessions: u32,
    /// For a soak: what one program's packets may take on disk. It has to change its files.
    pub(crate) budget: Option<u64>,
}

impl Place<'_> {
    /// The capture file, where a program writes one.
    fn file(&self) -> PathBuf {
        self.dir.join("capture.pcap")
    }

    /// softflowd's control socket.
    fn control(&self) -> PathBuf {
        self.dir.join("softflowd.ctl")
    }

    /// Argus' records.
    fn records(&self) -> PathBuf {
        self.dir.join("records.argus")
    }
}

/// When a program receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Once it has written this to standard error.
    Says(&'static str),
    /// Once it has a packet socket on the interface, or an XDP program.
    Listens,
}

const NAMES: [(&str, Kind); 7] = [
    ("stillwire", Kind::Stillwire),
    ("bare", Kind::Bare),
    ("tcpdump", Kind::Tcpdump),
    ("dumpcap", Kind::Dumpcap),
    ("netsniff-ng", Kind::NetsniffNg),
    ("argus", Kind::Argus),
    ("softflowd", Kind::Softflowd),
];

/// Marks a template.
const TEMPLATE: &str = "cmd:";

/// Reads the subjects of a command line.
///
/// # Errors
/// Names what is none, or what is there twice.
pub(crate) fn parse(given: &[String]) -> Result<Vec<Subject>> {
    let mut subjects: Vec<Subject> = Vec::new();
    for text in given {
        // A template may hold commas.
        let texts =
            if text.contains(TEMPLATE) { vec![text.as_str()] } else { text.split(',').collect() };
        for text in texts {
            let subject = Subject::parse(text.trim())?;
            ensure!(
                subjects.iter().all(|other| other.label != subject.label),
                "two subjects are called {}: give one of them a name (name={text})",
                subject.label
            );
            subjects.push(subject);
        }
    }
    Ok(subjects)
}

impl Subject {
    fn parse(text: &str) -> Result<Self> {
        let named = text.split_once('=').filter(|(name, _)| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_. ".contains(c))
        });
        let (label, text) = match named {
            // Options may hold an equals sign, too: a name stands before the program's.
            Some((name, rest)) if !is_known(name) => (Some(name.trim()), rest.trim()),
            _ => (None, text),
        };
        if let Some(command) = text.strip_prefix(TEMPLATE) {
            let first =
                command.split_whitespace().next().context("a template without a program")?;
            let name = Path::new(first).file_name().unwrap_or_default().to_string_lossy();
            let part = Part { kind: Kind::Template(command.to_owned()), options: Vec::new() };
            return Ok(Self { label: label.unwrap_or(&name).to_owned(), parts: vec![part] });
        }
        let parts: Vec<Part> = text.split('+').map(Part::parse).collect::<Result<_>>()?;
        let alone = |part: &Part| matches!(part.kind, Kind::Stillwire | Kind::Bare);
        ensure!(
            parts.len() == 1 || !parts.iter().any(alone),
            "'{text}': stillwire and bare take every frame of their interface, so nothing can run \
             beside them"
        );
        Ok(Self { label: label.unwrap_or(text).to_owned(), parts })
    }
}

/// Whether a text begins with a subject's name.
fn is_known(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    NAMES.iter().any(|(name, _)| *name == first)
}

impl Part {
    fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let first = words.next().context("a subject without a name")?;
        let Some((_, kind)) = NAMES.iter().find(|(name, _)| *name == first) else {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            bail!(
                "there is no subject '{first}'; known are {}, and any other program as \
                 'name={TEMPLATE}program -i {{iface}} -w {{file}}'",
                names.join(", ")
            );
        };
        Ok(Self { kind: kind.clone(), options: words.map(str::to_owned).collect() })
    }

    /// The programs it needs besides what the bench brings, with the Debian package of each.
    pub(crate) fn needs(&self) -> Vec<(String, &'static str)> {
        let capinfos = ("capinfos".to_owned(), "tshark");
        match &self.kind {
            Kind::Stillwire => vec![capinfos],
            Kind::Bare => Vec::new(),
            Kind::Tcpdump => vec![("tcpdump".to_owned(), "tcpdump"), capinfos],
            Kind::Dumpcap => vec![("dumpcap".to_owned(), "wireshark-common"), capinfos],
            Kind::NetsniffNg => vec![("netsniff-ng".to_owned(), "netsniff-ng"), capinfos],
            Kind::Argus => {
                vec![("argus".to_owned(), "argus-server"), ("racount".to_owned(), "argus-client")]
            }
            Kind::Softflowd => vec![
                ("softflowd".to_owned(), "softflowd"),
                ("nfcapd".to_owned(), "nfdump"),
                ("nfdump".to_owned(), "nfdump"),
            ],
            Kind::Template(_) => vec![capinfos],
        }
    }

    /// Whether this is the sensor, which then has to be there.
    pub(crate) fn is_stillwire(&self) -> bool {
        self.kind == Kind::Stillwire
    }

    /// Its command line.
    ///
    /// # Errors
    /// Where this program does not know its own name.
    pub(crate) fn command(&self, place: &Place<'_>) -> Result<Vec<OsString>> {
        let file = place.file();
        let mut line: Vec<OsString> = match &self.kind {
            Kind::Stillwire => {
                let store = place.dir.join("store");
                let mut line = words(&["capture", "--quiet", "--iface", place.iface, "--store"]);
                line.insert(0, place.stillwired.into());
                line.push(store.into());
                if let Some(bytes) = place.budget {
                    line.extend(words(&["--packet-budget", &bytes.to_string()]));
                }
                line
            }
            Kind::Bare => {
                let own = std::env::current_exe().context("finding this program")?;
                let mut line = words(&["bare", "--iface", place.iface]);
                line.insert(0, own.into());
                line
            }
            // -Z root: a capture in a directory of root's.
            Kind::Tcpdump => {
                let mut line =
                    words(&["tcpdump", "-Z", "root", "-n", "-B", "65536", "-i", place.iface, "-w"]);
                line.push(file.into());
                if place.budget.is_some() {
                    line.extend(words(&["-C", "256"]));
                }
                line
            }
            Kind::Dumpcap => {
                let mut line = words(&["dumpcap", "-q", "-P", "-B", "64", "-i", place.iface, "-w"]);
                line.push(file.into());
                if place.budget.is_some() {
                    line.extend(words(&["-b", "filesize:262144"]));
                }
                line
            }
            Kind::NetsniffNg => {
                let mut line = words(&[
                    "netsniff-ng",
                    "--silent",
                    "--ring-size",
                    "64MiB",
                    "--in",
                    place.iface,
                    "--out",
                ]);
                if place.budget.is_some() {
                    line.push(place.dir.into());
                    line.extend(words(&["--interval", "256MiB"]));
                } else {
                    line.push(file.into());
                }
                line
            }
            // -X: whatever the machine's own configuration says.
            Kind::Argus => {
                let mut line = words(&["argus", "-X", "-i", place.iface, "-w"]);
                line.push(place.records().into());
                line
            }
            // Room for twice the sessions: when its table is full it ends them early, in silence.
            // It asks libpcap for whole blocks only, so that the last frames of a load (up to some
            // thousand) stay in its buffer for good; no option changes that.
            Kind::Softflowd => {
                let flows = place.sessions.saturating_mul(2).max(8192).to_string();
                let collector = format!("127.0.0.1:{}", netflow::PORT);
                let mut line =
                    words(&["softflowd", "-d", "-v", "9", "-B", "67108864", "-m", &flows]);
                line.extend(words(&["-n", &collector, "-i", place.iface, "-p"]));
                line.push(place.dir.join("softflowd.pid").into());
                line.push("-c".into());
                line.push(place.control().into());
                line
            }
            Kind::Template(template) => {
                let quoted = |path: &Path| quoted(&path.to_string_lossy());
                let command = template
                    .replace("{iface}", place.iface)
                    .replace("{file}", &quoted(&file))
                    .replace("{dir}", &quoted(place.dir));
                // exec: the program has the shell's process id, and gets our signals.
                words(&["sh", "-c", &format!("exec {command}")])
            }
        };
        line.extend(self.options.iter().map(OsString::from));
        Ok(line)
    }

    /// When it receives.
    pub(crate) fn ready(&self) -> Ready {
        match self.kind {
            Kind::Stillwire => Ready::Says(stillwire_tests::sensor::READY),
            Kind::Bare => Ready::Says(super::bare::READY),
            _ => Ready::Listens,
        }
    }

    /// What asks it to end, if that is not a signal: softflowd forgets its flows at one.
    pub(crate) fn end_command(&self, place: &Place<'_>) -> Option<Command> {
        (self.kind == Kind::Softflowd).then(|| {
            let mut command = Command::new("softflowctl");
            command.arg("-c").arg(place.control()).arg("shutdown");
            command
        })
    }

    /// Whether it ended as it should when asked to.
    pub(crate) fn ended_well(&self, ended: &Ended) -> bool {
        match ended.code {
            // By the signal itself, or so that its parent can tell.
            None | Some(0 | 130) => true,
            // "Shutting down on user request".
            Some(1) => self.kind == Kind::Softflowd,
            Some(_) => false,
        }
    }

    /// What collects its flow records; started before the program.
    pub(crate) fn collector(&self, line: &Line) -> Result<Option<Collector>> {
        (self.kind == Kind::Softflowd).then(|| Collector::start(line)).transpose()
    }

    /// The program's version, as it tells.
    pub(crate) fn version(&self, stillwired: &Path) -> Option<String> {
        let (program, argument) = match &self.kind {
            Kind::Stillwire => (stillwired.to_owned(), "--version"),
            Kind::Bare => return Some(env!("CARGO_PKG_VERSION").to_owned()),
            Kind::Tcpdump => ("tcpdump".into(), "--version"),
            Kind::Dumpcap => ("dumpcap".into(), "--version"),
            Kind::NetsniffNg => ("netsniff-ng".into(), "--version"),
            Kind::Argus => ("argus".into(), "-h"),
            Kind::Softflowd => ("softflowd".into(), "-h"),
            Kind::Template(_) => return None,
        };
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        // Some tell it in their help only.
        let version = text.lines().find(|line| line.to_lowercase().contains("version"));
        let first = text.lines().find(|line| !line.trim().is_empty());
        version.or(first).map(|line| line.trim().to_owned())
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A word that a shell takes as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(given: &[&str]) -> Vec<String> {
        let given: Vec<_> = given.iter().map(|text| (*text).to_owned()).collect();
        parse(&given).unwrap().into_iter().map(|subject| subject.label).collect()
    }

    #[test]
    fn subjects_are_read_by_name_with_options_and_as_templates() {
        assert_eq!(labels(&["stillwire,bare", "tcpdump"]), ["stillwire", "bare", "tcpdump"]);
        assert_eq!(labels(&["tcpdump -B 4096", "tcpdump"]), ["tcpdump -B 4096", "tcpdump"]);
        assert_eq!(labels(&["small=tcpdump -B 64", "tcpdump"]), ["small", "tcpdump"]);
        assert_eq!(labels(&["cmd:/usr/bin/cap -i {iface},x -w {file}"]), ["cap"]);
        assert_eq!(labels(&["mine=cmd:cap --out={file}"]), ["mine"]);
        assert_eq!(labels(&["stillwire --mode=generic"]), ["stillwire --mode=generic"]);
        assert_eq!(labels(&["both=tcpdump+dumpcap -B 4"]), ["both"]);
    }

    #[test]
    fn what_is_no_subject_is_named() {
        for (text, told) in [
            ("tcpdumb", "tcpdumb"),
            ("", "without a name"),
            ("cmd:", "without a program"),
            ("stillwire+tcpdump", "beside"),
        ] {
            let error = parse(&[text.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
        let twice = parse(&["bare,bare".to_owned()]).unwrap_err().to_string();
        assert!(twice.contains("two subjects are called bare"), "{twice}");
    }

    #[test]
    fn templates_are_filled_in_and_quoted() {
        let subject = Subject::parse("cmd:cap -i {iface} -w {file} -d {dir}").unwrap();
        let place = Place {
            iface: "tap0",
            dir: Path::new("/tmp/it's here"),
            stillwired: Path::new("stillwired"),
            sessions: 1,
            budget: None,
        };
        let line = subject.parts[0].command(&place).unwrap();
        let expected =
            r"exec cap -i tap0 -w '/tmp/it'\''s here/capture.pcap' -d '/tmp/it'\''s here'";
        assert_eq!(line, ["sh", "-c", expected]);
    }
}
