//! How this program takes a mutex.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes it whatever became of those who held it: nothing here panics while holding one, and what they guard would be
/// sound if something did.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
