package kbuild

import (
	"path/filepath"
	"strings"

	"unlucky/arch"
)

// Kallsyms' form hangs on the letters of all names in it: two layouts may differ by
// addresses, and not by names, or no table is made of another. In arm64's kernels two
// kinds of names hang on addresses, and are kept out of kallsyms, as the kernel's own
// scripts keep veneers out (scripts/mksysmap).
//   - lld mends Cortex-A53's erratum 843419 (ARM64_ERRATUM_843419) by a patch for each
//     place that the addresses ask for, with a symbol that is named by an address.
//   - __hyp_text_end, with KVM __kvm_nvhe___hyp_text_end too, is aligned to a page and
//     _etext to 64 KiB: where both are one address, scripts/kallsyms.c leaves out the former.

// FixErratum is the option of the linker that mends the erratum.
const FixErratum = "--fix-cortex-a53-843419"

// HypTextEnd is what symbols that may be at _etext end in, PatchSymbol what patches' begin with.
const (
	HypTextEnd  = "__hyp_text_end"
	PatchSymbol = "__CortexA53843419_"
)

// nmWithout is a program that lists symbols as the one behind UNLUCKY_NM does, without
// those.
const nmWithout = `#!/bin/sh
# nm, but for symbols that hang on addresses.
symbols=$(${UNLUCKY_NM} "$@") || exit
printf '%s\n' "$symbols" | sed -e '/ ` + PatchSymbol + `/d' -e '/ [A-Za-z_]*` + HypTextEnd + `$/d'
`

// hideSymbols has the link script of arm64's kernels list symbols by that program.
func (p *Build) hideSymbols() error {
	if p.Arch != arch.ARM64 {
		return nil
	}
	path := filepath.Join(p.Dir, "nm")
	for i, v := range p.Env {
		if nm, ok := strings.CutPrefix(v, "NM="); ok {
			p.Env[i] = "NM=" + path
			p.Env = append(p.Env, "UNLUCKY_NM="+nm)
			break
		}
	}
	return replaceFile(path, []byte(nmWithout), 0o755)
}
