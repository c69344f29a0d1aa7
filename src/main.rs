//! Parses the arguments, runs the command and returns its exit code. Chooses the allocator.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    process::ExitCode,
    ptr,
};

use clap::Parser;
use lumilink::commands::{self, Cli};
use mimalloc::MiMalloc;

fn main() -> ExitCode {
    commands::run(Cli::parse())
}

#[global_allocator]
static ALLOCATOR: BySize = BySize;

/// Small allocations are mimalloc's: a turn makes some 300, and they take a third of the time that the system's allocator
/// needs. Large ones are the system's, which grows them in place and returns them to the kernel at once: mimalloc copies
/// them, so that a line of the maximum length would take three times its size.
struct BySize;

/// Size from which an allocation is large, in bytes.
const LARGE: usize = 64 * 1024;

// SAFETY: each method passes the caller's promises on to one of two allocators. Which one has an allocation follows from
// its size, which the caller states again when it resizes the allocation or gives it back.
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see the implementation.
        unsafe { if layout.size() < LARGE { MiMalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see the implementation.
        unsafe { if layout.size() < LARGE { MiMalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: see the implementation.
        unsafe {
            if layout.size() < LARGE { MiMalloc.dealloc(pointer, layout) } else { System.dealloc(pointer, layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (layout.size() < LARGE, size < LARGE) {
            // SAFETY: see the implementation.
            (true, true) => unsafe { MiMalloc.realloc(pointer, layout, size) },
            // SAFETY: see the implementation.
            (false, false) => unsafe { System.realloc(pointer, layout, size) },
            // SAFETY: the caller promises that `size` is a valid size for this alignment; the allocations are distinct,
            // and both have at least the smaller size.
            _ => unsafe {
                let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                if !moved.is_null() {
                    ptr::copy_nonoverlapping(pointer, moved, size.min(layout.size()));
                    self.dealloc(pointer, layout);
                }
                moved
            },
        }
    }
}
