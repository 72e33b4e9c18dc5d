package autopsy

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Mended are the bytes that are to be at the address of some damage: what the twin has
// there, put into the terms of this layout, or, where that is damaged as well or twin is
// nil, what is on disk.
func (r *Run) Mended(d *Damage, twin *Run) ([]byte, error) {
	n := len(d.Memory.Bytes) / 2
	if d.twin != 0 {
		t := twin.index[d.key]
		if code, ok := r.from(twin, t, d.twin, d.Address, n); ok {
			return code, nil
		}
	}
	disk := r.OnDisk().code(d.Address, n)
	if hex.EncodeToString(disk) == d.Memory.Bytes || len(disk) < n {
		return nil, fmt.Errorf("%s+%#x cannot be mended: what should be there is not known", d.Function, d.Offset)
	}
	return slices.Clone(disk), nil
}

// from is the code at an address of another layout, as it would be at one of this.
func (r *Run) from(other *Run, f *Function, there, here uint64, n int) (code []byte, ok bool) {
	walked := other.walk(f)
	for _, in := range other.list(there, n) {
		at := here + uint64(len(code))
		raw := slices.Clone(in.code)
		if len(raw) == 0 || in.refs != 0 {
			return nil, false
		}
		if direct(in) {
			kind, _ := other.landing(f, walked, in.to)
			to, known := r.same(other, in.to)
			if !known || !slices.Contains([]string{inside, entry, outside, page}, kind) || !redirect(raw, in.to-there-uint64(len(code)), to-at) {
				return nil, false
			}
		}
		code = append(code, raw...)
	}
	return code[:min(n, len(code))], len(code) >= n
}

// same is where what is at an address of another layout is in this.
func (r *Run) same(other *Run, address uint64) (here uint64, ok bool) {
	if g := other.function(address); g != nil {
		if h := r.index[g.key]; h != nil {
			return h.Address + address - g.Address, true
		}
		return 0, false
	}
	s := other.symbol(address)
	at, ok := r.named[s.name]
	return at + address - s.address, ok && other.named[s.name] == s.address
}

// redirect makes a direct branch lead elsewhere; was and is are how far from its own
// address it leads.
func redirect(code []byte, was, is uint64) bool {
	n := len(code)
	old, now := int64(was)-int64(n), int64(is)-int64(n)
	if n >= 5 && int64(int32(binary.LittleEndian.Uint32(code[n-4:]))) == old && now == int64(int32(now)) {
		binary.LittleEndian.PutUint32(code[n-4:], uint32(now))
		return true
	}
	if n < 5 && int64(int8(code[n-1])) == old && now == int64(int8(now)) {
		code[n-1] = byte(now)
		return true
	}
	return false
}
