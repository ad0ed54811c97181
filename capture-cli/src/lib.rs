//! capture-cli
