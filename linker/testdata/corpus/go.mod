// The ELF files that FuzzObject starts from, in a module of their own: a
// requirement of the main module that a proxy refuses would break every build.
module unlucky/linker/testdata/corpus

go 1.26

require github.com/dvyukov/go-fuzz-corpus v0.0.0-20190920191254-c42c1b2914c7
