//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::output::Format;

const AFTER_HELP: &str = "\
Filters read like pcap filters:
  host 10.0.0.1                   either end            src | dst | orig | resp host A
  net 10.0.0.0/8                  either end            src | dst | orig | resp net N
  port ssh, portrange 6000-6010   either end            tcp dst port 80 or 443
  tcp udp sctp icmp icmp6 arp ip ip6, proto 47, ether proto lldp, ether host MAC, vlan 5
  inbound outbound internal external                    by the sensor's --local-nets
  state SF, service ssh, uid C…, iface eth0, sensor s1
  bytes > 10M, orig bytes < 1k, pkts = 1, duration >= 1h30m
  and or not && || !, parentheses
`src`/`dst` mean originator and responder. As in pcap, `and` and `or` bind alike, from left to
right. Names are not resolved.

Times: 2007-02-02T06:25:00Z, '2007-02-02 06:25', 2007-02-02, 06:25, 'yesterday 11:25', -15m, now,
1170397500.25; in the zone of --tz.

Exit codes: 0 done (prove: absent), 1 failed, 2 usage; prove: 3 present, 4 unproven.";

/// Asks a Stillwire sensor's store: which sessions, which packets, and how far to trust the answer
#[derive(Debug, Parser)]
#[command(name = "stillwire", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Store of a sensor; repeat it to ask several. It may also follow the command
    #[arg(short, long = "store", value_name = "DIR")]
    pub stores: Vec<PathBuf>,
    /// Time zone of times read and shown: a name, an offset, UTC, local [default: local]
    #[arg(long, value_name = "ZONE", allow_hyphen_values = true, global = true)]
    pub tz: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List sessions
    Sessions(SessionsArgs),
    /// Get the packets of sessions, in time order
    Packets(PacketsArgs),
    /// Tell whether a session was there, and prove it where none was
    Prove(ProveArgs),
    /// Write a verdict with all its evidence as one HTML page
    Report(ReportArgs),
    /// Show what the record covers, and where and why it has gaps
    Coverage(CoverageArgs),
    /// Check that a store is as its sensor wrote it: signatures, chain, accounts, files
    Verify(VerifyArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page (roff); for all commands, write the pages to a directory
    Man {
        /// Directory for the pages of all commands
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Where to look.
#[derive(Debug, Args)]
pub struct Where {
    /// Store of a sensor; repeat it to ask several at once [default: $STILLWIRE_STORE, else
    /// ./store]
    #[arg(short, long = "store", value_name = "DIR")]
    pub stores: Vec<PathBuf>,
    /// From this time on [default: as far back as the record reaches]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// Up to this time; a day means its end [default: as far as the record reaches]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub to: Option<String>,
}

impl Where {
    /// The stores to open: those named before the command and behind it, else the one that the
    /// environment names, else `./store`.
    #[must_use]
    pub fn stores(&self, before: &[PathBuf]) -> Vec<PathBuf> {
        stores(before, &self.stores)
    }
}

fn stores(before: &[PathBuf], behind: &[PathBuf]) -> Vec<PathBuf> {
    let named: Vec<PathBuf> = before.iter().chain(behind).cloned().collect();
    if !named.is_empty() {
        return named;
    }
    let environment = std::env::var_os("STILLWIRE_STORE").filter(|path| !path.is_empty());
    vec![environment.map_or_else(|| PathBuf::from("store"), PathBuf::from)]
}

/// `sessions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillwire sessions host 10.0.0.7 --from -1h
  stillwire sessions 'resp host 10.0.0.7 and tcp port 22' --from 'yesterday 11:00' --to 'yesterday 12:00'
  stillwire sessions 'outbound and bytes > 100M' --sort -bytes --limit 20
  stillwire sessions --format ndjson | jq .server_name
  stillwire sessions --format zeek | zeek-cut id.orig_h service

A session counts to the window if any part of it does. Each is listed once, as last logged, the
open tail of the log included. Filters: see `stillwire --help`.")]
pub struct SessionsArgs {
    /// Which sessions; without a filter, all
    #[arg(value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Where and when
    #[command(flatten)]
    pub place: Where,
    /// How to write them
    #[arg(short, long, value_enum, default_value = "table")]
    pub format: Format,
    /// At most so many, 0 for all [default: 1000 for a table on a terminal, else all]
    #[arg(short = 'n', long, value_name = "N")]
    pub limit: Option<usize>,
    /// Order by a column, `bytes` or `pkts`; -COL for the largest first [default: ts]
    #[arg(long, value_name = "COL", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Also list sessions that could match: guessed direction, fragments without ports, …
    #[arg(long)]
    pub possible: bool,
}

/// `packets`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillwire packets CHhAvVGS1DHFjwGM9 | tcpdump -nr -
  stillwire packets host 10.0.0.7 and port 22 --from -1h -w ssh.pcap
  stillwire packets 'service dns' --from 06:20 --to 06:30 | tshark -r -

The output is nanosecond pcap in time order; where the packets have different link types it is
pcapng with an interface for each. Exit code 1 if packets of a session are no longer there.")]
pub struct PacketsArgs {
    /// Which sessions: a filter, or the uid of one
    #[arg(value_name = "FILTER|UID", required = true)]
    pub filter: Vec<String>,
    /// Where and when; packets outside the window are left out
    #[command(flatten)]
    pub place: Where,
    /// Write to this file; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Also those of sessions that could match
    #[arg(long)]
    pub possible: bool,
}

/// `prove`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillwire prove 'resp host 10.0.0.7 and tcp port 22' --from '2007-02-02 06:00' --to '2007-02-02 07:00'
  stillwire prove 'host 10.0.0.7' --from -10m --to now --wait
  stillwire prove 'host 10.0.0.7' --from -1h --to -30m --format json | jq -r .sentence

Verdicts and exit codes:
  absent    0  no session matches, none could, and the whole window is covered
  present   3  at least one session matches
  unproven  4  none certainly matches, but one could have been there: the list says what and when
  1 and 2 are failures and usage errors. The rules: docs/VERDICT.md.")]
pub struct ProveArgs {
    /// Which sessions; \"\" for any
    #[arg(value_name = "FILTER", required = true)]
    pub filter: Vec<String>,
    /// The window, and what to trust
    #[command(flatten)]
    pub evidence: Evidence,
    /// How to write it
    #[arg(short, long, value_enum, default_value = "text")]
    pub format: TextOrJson,
}

/// `report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  stillwire report 'resp host 10.0.0.7 and tcp port 22' --from '2007-02-02 06:00' --to '2007-02-02 07:00' -o evidence.html

The page needs no network, no script and nothing beside itself, and prints well. Exit codes are those
of `prove`: 0 absent, 3 present, 4 unproven.")]
pub struct ReportArgs {
    /// Which sessions; \"\" for any
    #[arg(value_name = "FILTER", required = true)]
    pub filter: Vec<String>,
    /// The window, and what to trust
    #[command(flatten)]
    pub evidence: Evidence,
    /// Write the page to this file; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// What a verdict is sought from.
#[derive(Debug, Args)]
pub struct Evidence {
    /// The window
    #[command(flatten)]
    pub place: Span,
    /// Wait until the log of a running sensor is complete through the window, this long at most
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "2m")]
    pub wait: Option<String>,
    /// The sensor's public key, from somewhere safe [default: the one that the store names]
    #[arg(long, value_name = "HEX")]
    pub public_key: Option<String>,
}

/// Where to look, and a window with both its ends.
#[derive(Debug, Args)]
pub struct Span {
    /// Store of a sensor; repeat it to ask several at once [default: $STILLWIRE_STORE, else
    /// ./store]
    #[arg(short, long = "store", value_name = "DIR")]
    pub stores: Vec<PathBuf>,
    /// From this time on
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, required = true)]
    pub from: String,
    /// Up to this time; a day means its end
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, required = true)]
    pub to: String,
}

impl Span {
    /// The same as a place with a window that may be open.
    #[must_use]
    pub fn as_where(&self) -> Where {
        let (from, to) = (Some(self.from.clone()), Some(self.to.clone()));
        Where { stores: self.stores.clone(), from, to }
    }
}

/// `coverage`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillwire coverage --from -24h
  stillwire coverage --from '2007-02-02 06:00' --to '2007-02-02 07:00' --tz UTC
  stillwire coverage --format json | jq '.gaps[] | select(.frames_lost > 0)'

Without a window: from the first to the last line of the ledger.")]
pub struct CoverageArgs {
    /// Where and when
    #[command(flatten)]
    pub place: Where,
    /// How to write it
    #[arg(short, long, value_enum, default_value = "text")]
    pub format: TextOrJson,
}

/// Formats of `coverage`, `prove` and `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextOrJson {
    /// For people
    Text,
    /// One object
    Json,
}

/// `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stillwire verify
  stillwire verify --public-key 5d3f…c1 --store /mnt/copy
  stillwire verify --anchor /mnt/other/stillwire.anchor
  stillwire verify --anchor /var/log/syslog --format json | jq '.findings[]'

Needs nothing but the store and the sensor's public key, which `stillwire verify` on the sensor
prints: note it down elsewhere. Without it the key in the store is taken, which shows every change
but not that somebody has replaced everything, the key included. An anchor (`stillwired capture
--anchor`) shows also that the ledger's end was cut off.

Every line of the ledger and every sealed file is read. What a sensor had to leave open is listed:
nothing vouches for it until it is sealed.

Exit codes: 0 the store is whole, 1 there are findings or it cannot be read, 2 usage.")]
pub struct VerifyArgs {
    /// Store of a sensor; repeat it to verify several [default: $STILLWIRE_STORE, else ./store]
    #[arg(short, long = "store", value_name = "DIR")]
    pub stores: Vec<PathBuf>,
    /// The sensor's public key: 64 hexadecimal digits, or a file with them, or a copy of
    /// sensor.json
    #[arg(long, value_name = "HEX|FILE")]
    pub public_key: Option<String>,
    /// File with heads of the ledger that the sensor kept elsewhere, or a log with them in it;
    /// repeat it for several
    #[arg(long = "anchor", value_name = "FILE")]
    pub anchors: Vec<PathBuf>,
    /// How to write it
    #[arg(short, long, value_enum, default_value = "text")]
    pub format: TextOrJson,
}

impl VerifyArgs {
    /// The stores to verify, chosen as for every command.
    #[must_use]
    pub fn stores(&self, before: &[PathBuf]) -> Vec<PathBuf> {
        stores(before, &self.stores)
    }
}
