//! What the measuring bench is made of: traffic made in memory, and the engine's own code that it
//! is put through.

pub mod disk;
pub mod measure;
pub mod pipeline;
pub mod traffic;
