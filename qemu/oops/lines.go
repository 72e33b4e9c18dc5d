package oops

import "bytes"

// LineMax is the longest line, in bytes.
const LineMax = 4 << 10

// A LineWriter cuts a stream into lines and calls Each with every one that is not
// empty, without its end. Lines above LineMax are taken in pieces.
type LineWriter struct {
	Each    func(line []byte)
	partial []byte
}

// Write never fails.
func (l *LineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		piece, ended := b, false
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			piece, ended = b[:i], true
		}
		rest := LineMax - len(l.partial)
		if len(piece) > rest {
			piece, ended = piece[:rest], false
		}
		l.partial = append(l.partial, piece...)
		b = b[len(piece):]
		if ended {
			b = b[1:]
		}
		if ended || len(l.partial) == LineMax {
			l.Flush()
		}
	}
	return n, nil
}

// Flush passes on a last line that lacks its end.
func (l *LineWriter) Flush() {
	if len(l.partial) > 0 {
		l.Each(l.partial)
		l.partial = l.partial[:0]
	}
}

// escape returns the length of the terminal's escape sequence that s begins
// with: CSI, OSC, or a short one. A regexp takes a minute for the 100 MB of
// escapes that a guest can print.
func escape(s []byte) int {
	n := len("\x1b")
	span := func(low, high byte) {
		for n < len(s) && low <= s[n] && s[n] <= high {
			n++
		}
	}
	one := func(low, high byte) {
		if n < len(s) && low <= s[n] && s[n] <= high {
			n++
		}
	}
	switch {
	case n < len(s) && s[n] == '[':
		n++
		span('0', '?')
		span(' ', '/')
		one('@', '~')
	case n < len(s) && s[n] == ']':
		for n++; n < len(s) && s[n] != '\a' && s[n] != 0x1b; {
			n++
		}
		if bytes.HasPrefix(s[n:], []byte("\x1b\\")) {
			n += len("\x1b\\")
		} else {
			one('\a', '\a')
		}
	default:
		span(' ', '/')
		one('0', '~')
	}
	return n
}

// Clean takes escape sequences out of a line, in place, and turns all else
// that is not printable ASCII into spaces.
func Clean(line []byte) []byte {
	plain := 0
	for plain < len(line) && ' ' <= line[plain] && line[plain] <= '~' {
		plain++
	}
	kept := line[:plain]
	for i := plain; i < len(line); i++ {
		switch b := line[i]; {
		case b == 0x1b:
			i += escape(line[i:]) - 1
		case b < ' ' || b > '~':
			kept = append(kept, ' ')
		default:
			kept = append(kept, b)
		}
	}
	return kept
}
