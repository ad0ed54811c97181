//! capture-store
