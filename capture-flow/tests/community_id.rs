//! The vectors of the Community ID specification, which the project cannot contain.

use std::net::IpAddr;
use std::path::PathBuf;

use capture_flow::community_id::CommunityId;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vector {
    proto: u8,
    saddr: IpAddr,
    daddr: IpAddr,
    sport: Option<u16>,
    dport: Option<u16>,
    seed: u16,
    base64: bool,
    id: String,
}

#[test]
fn every_vector() {
    let traces = std::env::var_os("STILLWIRE_TRACES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/traces")),
        PathBuf::from,
    );
    let path = traces.join("community-id.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: {} is absent (set STILLWIRE_TRACES)", path.display());
        return;
    };
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
    assert!(!vectors.is_empty());
    for vector in &vectors {
        let id = CommunityId::new(
            vector.seed,
            vector.proto,
            (vector.saddr, vector.sport.unwrap_or(0)),
            (vector.daddr, vector.dport.unwrap_or(0)),
        );
        let shown = if vector.base64 { id.to_string() } else { id.hex().to_string() };
        assert_eq!(
            shown, vector.id,
            "protocol {} {} {:?} {} {:?}",
            vector.proto, vector.saddr, vector.sport, vector.daddr, vector.dport
        );
    }
    println!("{} vectors", vectors.len());
}
