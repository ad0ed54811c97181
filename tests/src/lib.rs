//! What the end-to-end tests stand on: namespaces, wires, traffic, programs and the readers that
//! check the result from outside.
//!
//! Every test builds its own wire in its own pair of network namespaces, so tests never see each
//! other's frames nor the machine's own interfaces:
//!
//! ```text
//!   sender namespace                          sensor namespace
//!  ┌────────────────────┐                    ┌─────────────────────────┐
//!  │ trafgen, sockets   │     veth pair      │ stillwired capture      │
//!  │        tx0 ────────┼────────────────────┼──── tap0                │
//!  │  queue 0..n        │  offloads off,     │  queue 0..n, XDP here   │
//!  │                    │  no IPv6, no ARP   │                         │
//!  └────────────────────┘                    └─────────────────────────┘
//! ```
//!
//! The wire is silent until a test speaks: IPv6 is off on both ends and no address is set, so a
//! count that is off by one is the sensor's error and never the kernel's chatter.
//!
//! All of it needs root. Without it the tests fail, they do not skip.

pub mod account;
pub mod blind;
pub mod disk;
pub mod guest;
pub mod lab;
pub mod netns;
pub mod outside;
pub mod process;
pub mod sensor;
pub mod traffic;
pub mod verdict;
pub mod wire;

pub use account::Account;
pub use lab::Lab;
pub use netns::Namespace;
pub use process::Program;
pub use wire::{Wire, WireSpec};
