//! capture-user
