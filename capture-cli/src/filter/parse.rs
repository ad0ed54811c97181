//! Reads a filter.
//!
//! The grammar is pcap's, for sessions: `and` and `or` bind alike and from left to right, `not`
//! binds tightest, and a bare identifier takes the qualifiers of the one before it
//! (`tcp dst port 80 or 443`).

use std::net::IpAddr;
use std::ops::Range;

use super::ast::{Cmp, Count, End, Expr, Locality, Test, TextColumn};
use super::error::{FilterError, nearest};
use super::lex::{Lexeme, Token, tokens};
use super::names;
use super::value::{self, Kind};

/// How deeply parentheses, `not` and alternating `and`/`or` may nest.
const MAX_DEPTH: usize = 200;

type Result<T> = std::result::Result<T, FilterError>;

/// A filter that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The tree.
    pub expr: Expr,
    /// How an expression that mixes `or` and `and` without parentheses was understood, where
    /// somebody used to other precedence would read it differently.
    pub note: Option<String>,
}

/// Reads a filter. An empty one matches everything.
///
/// # Errors
/// A [`FilterError`] that points at the first place that makes no sense.
pub fn parse(filter: &str) -> Result<Parsed> {
    let mut parser = Parser { tokens: tokens(filter)?, at: 0, depth: 0, last: None, mixed: false };
    if parser.peek().token == Token::End {
        return Ok(Parsed { expr: Expr::everything(), note: None });
    }
    let expr = parser.chain()?;
    let lexeme = parser.peek().clone();
    match lexeme.token {
        Token::End => {}
        Token::Close => {
            return Err(FilterError::new(lexeme.span, "this parenthesis was never opened"));
        }
        _ => return Err(missing_operator(lexeme.span)),
    }
    let note = parser.mixed.then(|| {
        format!("`and` and `or` bind alike, from left to right, as in pcap: read as `{expr}`")
    });
    Ok(Parsed { expr, note })
}

/// What stands before an identifier, and is taken over by the next bare one.
#[derive(Clone, Debug)]
struct Qualifiers {
    protocol: Option<Test>,
    ether: bool,
    end: End,
    kind: Kind,
}

struct Parser {
    tokens: Vec<Lexeme>,
    at: usize,
    depth: usize,
    last: Option<Qualifiers>,
    mixed: bool,
}

/// Words that start a test, for suggestions.
const KEYWORDS: [&str; 39] = [
    "host",
    "net",
    "port",
    "portrange",
    "src",
    "dst",
    "orig",
    "resp",
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "sctp",
    "arp",
    "ip",
    "ip6",
    "proto",
    "ether",
    "vlan",
    "inbound",
    "outbound",
    "internal",
    "external",
    "state",
    "service",
    "bytes",
    "pkts",
    "duration",
    "uid",
    "iface",
    "sensor",
    "packets",
    "interface",
    "conn_state",
    "orig_bytes",
    "resp_bytes",
    "orig_pkts",
    "resp_pkts",
    "lldp",
];

impl Parser {
    fn peek(&self) -> &Lexeme {
        self.ahead(0)
    }

    /// The lexeme so many places further on; the end repeats itself.
    fn ahead(&self, places: usize) -> &Lexeme {
        let last = self.tokens.len().saturating_sub(1);
        &self.tokens[self.at.saturating_add(places).min(last)]
    }

    fn next(&mut self) -> Lexeme {
        let lexeme = self.peek().clone();
        self.at += 1;
        lexeme
    }

    fn word_ahead(&self, places: usize) -> Option<String> {
        match &self.ahead(places).token {
            Token::Word(word) => Some(word.to_ascii_lowercase()),
            _ => None,
        }
    }

    fn deeper(&mut self, span: &Range<usize>) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(FilterError::new(span.clone(), "the filter nests too deeply here"));
        }
        Ok(())
    }

    /// `test and test or test …`
    fn chain(&mut self) -> Result<Expr> {
        let entered = self.depth;
        let mut left = self.unary()?;
        // Which of the two words joined `left` at this level; parentheses begin anew.
        let mut joined: Option<Token> = None;
        loop {
            let lexeme = self.peek().clone();
            if lexeme.token != Token::And && lexeme.token != Token::Or {
                self.depth = entered;
                return Ok(left);
            }
            self.at += 1;
            let right = self.unary()?;
            if joined == Some(Token::Or) && lexeme.token == Token::And {
                self.mixed = true;
            }
            if joined.as_ref() == Some(&lexeme.token) {
                if let Expr::And(parts) | Expr::Or(parts) = &mut left {
                    parts.push(right);
                }
                continue;
            }
            self.deeper(&lexeme.span)?;
            let parts = vec![left, right];
            left = if lexeme.token == Token::And { Expr::And(parts) } else { Expr::Or(parts) };
            joined = Some(lexeme.token);
        }
    }

    fn unary(&mut self) -> Result<Expr> {
        let lexeme = self.peek().clone();
        match lexeme.token {
            Token::Not => {
                self.at += 1;
                self.deeper(&lexeme.span)?;
                let inner = self.unary()?;
                self.depth -= 1;
                Ok(Expr::Not(Box::new(inner)))
            }
            Token::Open => self.parenthesis(),
            Token::Word(word) => self.test(&word, &lexeme.span),
            Token::Quoted(_) => self.bare(),
            Token::Close => Err(FilterError::new(lexeme.span, "something is missing before this")),
            Token::And | Token::Or | Token::Cmp(_) => {
                Err(FilterError::new(lexeme.span, "a test is missing before this"))
            }
            Token::End => Err(FilterError::new(lexeme.span, "the filter breaks off here")),
        }
    }

    fn parenthesis(&mut self) -> Result<Expr> {
        let open = self.next();
        self.deeper(&open.span)?;
        let inner = self.chain()?;
        self.depth -= 1;
        let close = self.next();
        match close.token {
            Token::Close => Ok(inner),
            Token::End => Err(FilterError::new(open.span, "this parenthesis is never closed")),
            _ => Err(missing_operator(close.span)),
        }
    }

    /// A test that begins with a word.
    fn test(&mut self, text: &str, span: &Range<usize>) -> Result<Expr> {
        let word = text.to_ascii_lowercase();
        if let Some(locality) = Locality::ALL.into_iter().find(|l| l.as_str() == word) {
            self.at += 1;
            return Ok(Expr::Test(Test::Locality(locality)));
        }
        match word.as_str() {
            "bytes" | "pkts" | "packets" | "orig_bytes" | "resp_bytes" | "orig_pkts"
            | "resp_pkts" => {
                self.at += 1;
                let (end, count) = match word.as_str() {
                    "orig_bytes" => (End::Orig, Count::Bytes),
                    "resp_bytes" => (End::Resp, Count::Bytes),
                    "orig_pkts" => (End::Orig, Count::Pkts),
                    "resp_pkts" => (End::Resp, Count::Pkts),
                    "bytes" => (End::Any, Count::Bytes),
                    _ => (End::Any, Count::Pkts),
                };
                self.count(count, end)
            }
            "duration" => {
                self.at += 1;
                self.duration()
            }
            "vlan" => {
                self.at += 1;
                let number = self.word_ahead(0).and_then(|word| names::whole(&word));
                let qualifiers = Qualifiers::plain(Kind::Vlan);
                if number.is_some() || self.peek().token == Token::Open {
                    return self.identifier(qualifiers);
                }
                self.last = Some(qualifiers);
                Ok(Expr::Test(Test::Vlan(None)))
            }
            "state" | "conn_state" => self.column(Kind::State),
            "service" => self.column(Kind::Service),
            "uid" => self.column(Kind::Text(TextColumn::Uid)),
            "iface" | "interface" => self.column(Kind::Text(TextColumn::Iface)),
            "sensor" => self.column(Kind::Text(TextColumn::Sensor)),
            _ if is_qualifier(&word) => self.qualified(),
            _ => self.unknown(text, span),
        }
    }

    /// A column with `=`, `!=` or nothing before its value.
    fn column(&mut self, kind: Kind) -> Result<Expr> {
        self.at += 1;
        let lexeme = self.peek().clone();
        let negated = match lexeme.token {
            Token::Cmp(Cmp::Eq) => {
                self.at += 1;
                false
            }
            Token::Cmp(Cmp::Ne) => {
                self.at += 1;
                true
            }
            Token::Cmp(_) => {
                return Err(FilterError::new(lexeme.span, "this column has no order")
                    .help("compare it with = or !="));
            }
            _ => false,
        };
        let test = self.identifier(Qualifiers::plain(kind))?;
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    /// `[protocol] [end] [type] identifier`, or a protocol alone.
    fn qualified(&mut self) -> Result<Expr> {
        let mut qualifiers = Qualifiers::plain(Kind::Address);
        let first = self.peek().clone();
        if let Some(word) = self.word_ahead(0) {
            if word == "ether" {
                self.at += 1;
                qualifiers.ether = true;
                qualifiers.kind = Kind::Mac;
            } else if let Some(test) = protocol(&word) {
                self.at += 1;
                if !self.word_ahead(0).is_some_and(|next| is_dir(&next) || is_type(&next)) {
                    return Ok(Expr::Test(test));
                }
                qualifiers.protocol = Some(test);
            }
        }
        let end = self.end();
        if let Some(end) = end {
            qualifiers.end = end;
            if let Some(word) = self.word_ahead(0) {
                let count = match word.as_str() {
                    "bytes" => Some(Count::Bytes),
                    "pkts" | "packets" => Some(Count::Pkts),
                    _ => None,
                };
                if let Some(count) = count {
                    self.at += 1;
                    return self.count(count, end);
                }
            }
        }
        let typed = self.peek().clone();
        if let Some(kind) = self.word_ahead(0).and_then(|word| kind(&word, qualifiers.ether)) {
            self.at += 1;
            qualifiers.kind = kind;
        } else if qualifiers.ether && end.is_none() {
            return Err(FilterError::new(typed.span, "`ether` needs more").help(
                "write `ether host MAC`, `ether src MAC`, `ether dst MAC` or `ether proto N`",
            ));
        }
        qualifiers.check(&first.span, &typed.span)?;
        self.identifier(qualifiers)
    }

    /// `src`, `dst`, `src or dst`, `src and dst` and their session names.
    fn end(&mut self) -> Option<End> {
        let first = self.word_ahead(0).as_deref().and_then(dir)?;
        self.at += 1;
        let second = self.word_ahead(1).as_deref().and_then(dir);
        let joined = match (&self.peek().token, second) {
            (Token::And, Some(second)) if second != first => End::Both,
            (Token::Or, Some(second)) if second != first => End::Any,
            _ => return Some(first),
        };
        // `src 10.0.0.1 or dst 10.0.0.2` has its identifier between the two; here is none.
        self.at += 2;
        Some(joined)
    }

    /// The identifier that the qualifiers speak of, or a parenthesis full of them.
    fn identifier(&mut self, qualifiers: Qualifiers) -> Result<Expr> {
        let lexeme = self.peek().clone();
        let what = qualifiers.kind.what();
        self.last = Some(qualifiers);
        match lexeme.token {
            Token::Open => self.parenthesis(),
            Token::Word(_) | Token::Quoted(_) => self.bare(),
            _ => Err(FilterError::new(lexeme.span, format!("{what} is missing here"))),
        }
    }

    /// A bare identifier: it takes the qualifiers before it.
    fn bare(&mut self) -> Result<Expr> {
        let lexeme = self.next();
        let (Token::Word(text) | Token::Quoted(text)) = lexeme.token else {
            return Err(FilterError::new(lexeme.span, "an identifier is missing here"));
        };
        let qualifiers = match self.last.clone() {
            Some(qualifiers) => qualifiers,
            None => match value::guess(&text) {
                Some(kind) => Qualifiers { ether: kind == Kind::Mac, ..Qualifiers::plain(kind) },
                None => {
                    return Err(FilterError::new(lexeme.span, "a text needs a column before it")
                        .help("for example `iface \"eth0\"`"));
                }
            },
        };
        let mut test = match (&qualifiers.kind, self.mask(&qualifiers.kind)) {
            (_, Some(mask)) => {
                let mask = mask?;
                value::masked(&text, mask.0, lexeme.span.start..mask.1, qualifiers.end)?
            }
            (kind, None) => value::test(kind, qualifiers.end, &text, &lexeme.span)?,
        };
        self.last = Some(qualifiers.clone());
        if let Some(protocol) = qualifiers.protocol {
            test = Expr::And(vec![Expr::Test(protocol), test]);
        }
        Ok(test)
    }

    /// pcap's `net A mask M`: the mask and where it ends.
    fn mask(&mut self, kind: &Kind) -> Option<Result<(IpAddr, usize)>> {
        if *kind != Kind::Net || self.word_ahead(0)? != "mask" {
            return None;
        }
        self.at += 1;
        let lexeme = self.next();
        let address = match &lexeme.token {
            Token::Word(word) => word.parse().ok(),
            _ => None,
        };
        Some(match address {
            Some(mask) => Ok((mask, lexeme.span.end)),
            None => Err(FilterError::new(lexeme.span, "a mask like 255.255.0.0 is missing here")),
        })
    }

    fn comparison(&mut self) -> Cmp {
        match self.peek().token {
            Token::Cmp(cmp) => {
                self.at += 1;
                cmp
            }
            _ => Cmp::Eq,
        }
    }

    fn count(&mut self, count: Count, end: End) -> Result<Expr> {
        let cmp = self.comparison();
        let lexeme = self.next();
        let number = match &lexeme.token {
            Token::Word(word) => names::count(word),
            _ => None,
        };
        let Some(number) = number else {
            return Err(FilterError::new(lexeme.span, "a number is missing here")
                .help("for example `bytes > 10000`, `orig bytes >= 1.5M`, `pkts = 1`"));
        };
        if end == End::Both {
            let parts = [End::Orig, End::Resp];
            let parts = parts.map(|end| Expr::Test(Test::Count(count, end, cmp, number)));
            return Ok(Expr::And(parts.to_vec()));
        }
        Ok(Expr::Test(Test::Count(count, end, cmp, number)))
    }

    fn duration(&mut self) -> Result<Expr> {
        let cmp = self.comparison();
        let lexeme = self.next();
        let nanos = match &lexeme.token {
            Token::Word(word) => names::duration(word),
            _ => None,
        };
        nanos.map(|nanos| Expr::Test(Test::Duration(cmp, nanos))).ok_or_else(|| {
            FilterError::new(lexeme.span, "a length of time is missing here")
                .help("for example `duration > 90`, `duration >= 1.5s`, `duration < 1h30m`")
        })
    }

    /// A word that is no keyword: an identifier, or a mistake.
    fn unknown(&mut self, word: &str, span: &Range<usize>) -> Result<Expr> {
        if self.last.is_some() || value::guess(word).is_some() {
            let taken = self.last.as_ref().map(|last| last.kind.clone());
            return self.bare().map_err(|error| match (taken, nearest(word, KEYWORDS)) {
                // A misspelt keyword after an identifier is likelier than a strange identifier.
                (Some(kind), Some(keyword)) if kind != Kind::Text(TextColumn::Iface) => {
                    FilterError { help: Some(format!("did you mean `{keyword}`?")), ..error }
                }
                _ => error,
            });
        }
        let error = FilterError::new(span.clone(), format!("`{word}` is no keyword"));
        Err(if word.contains('[') || FRAME_WORDS.contains(&word) {
            error.help(
                "this asks about single frames, not sessions: \
                 `stillwire packets FILTER | tcpdump -r - '…'` can",
            )
        } else if let Some(keyword) = nearest(word, KEYWORDS) {
            error.help(format!("did you mean `{keyword}`?"))
        } else if word.contains('.') {
            error.help("names are not resolved: give an address, for example `host 10.0.0.1`")
        } else {
            error.help("a filter reads like `host 10.0.0.1 and tcp port 22`")
        })
    }
}

/// Words of pcap filters that ask about a frame.
const FRAME_WORDS: [&str; 6] = ["greater", "less", "broadcast", "multicast", "gateway", "len"];

impl Qualifiers {
    fn plain(kind: Kind) -> Self {
        Self { protocol: None, ether: false, end: End::Any, kind }
    }

    /// Combinations that can never match are mistakes.
    fn check(&self, first: &Range<usize>, typed: &Range<usize>) -> Result<()> {
        let ports = matches!(self.kind, Kind::Port | Kind::PortRange);
        match &self.protocol {
            Some(Test::EtherProto(_)) if self.kind != Kind::Mac => {
                Err(FilterError::new(first.clone(), "these sessions have no IP addresses or ports")
                    .help("they are known by MAC address: `arp and ether host MAC`"))
            }
            Some(Test::Icmp | Test::IpProto(58)) if ports => {
                Err(FilterError::new(typed.clone(), "ICMP has no ports"))
            }
            _ if self.ether && ports => {
                Err(FilterError::new(typed.clone(), "the link layer has no ports"))
            }
            _ => Ok(()),
        }
    }
}

fn missing_operator(span: Range<usize>) -> FilterError {
    FilterError::new(span, "`and` or `or` is missing before this")
}

fn protocol(word: &str) -> Option<Test> {
    Some(match word {
        "tcp" => Test::IpProto(6),
        "udp" => Test::IpProto(17),
        "sctp" => Test::IpProto(132),
        "icmp" => Test::Icmp,
        "icmp6" | "icmpv6" => Test::IpProto(58),
        "ip" | "ip4" | "ipv4" => Test::Ipv4,
        "ip6" | "ipv6" => Test::Ipv6,
        "arp" => Test::EtherProto(0x0806),
        "rarp" => Test::EtherProto(0x8035),
        "lldp" => Test::EtherProto(0x88cc),
        _ => return None,
    })
}

fn dir(word: &str) -> Option<End> {
    match word {
        "src" | "orig" => Some(End::Orig),
        "dst" | "resp" => Some(End::Resp),
        _ => None,
    }
}

fn kind(word: &str, ether: bool) -> Option<Kind> {
    Some(match (word, ether) {
        ("host", true) => Kind::Mac,
        ("proto", true) => Kind::EtherProto,
        ("host", false) => Kind::Host,
        ("net", false) => Kind::Net,
        ("proto", false) => Kind::Proto,
        ("port", _) => Kind::Port,
        ("portrange", _) => Kind::PortRange,
        _ => return None,
    })
}

fn is_dir(word: &str) -> bool {
    dir(word).is_some()
}

fn is_type(word: &str) -> bool {
    kind(word, false).is_some()
}

fn is_qualifier(word: &str) -> bool {
    word == "ether" || is_dir(word) || is_type(word) || protocol(word).is_some()
}
