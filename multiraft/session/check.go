package session

// CheckRecord says whether a stored record of a group decodes, if it is one of this
// package: ErrBadRecord if not. Others are let pass.
func CheckRecord(suffix, val []byte) error {
	switch {
	case len(suffix) == 1 && suffix[0] == tagRecord:
		_, _, err := (&Table{Store: oneRecord(val)}).head()
		return err
	case len(suffix) == 1+16+8 && suffix[0] == tagRecord:
		return new(Record).decode(val)
	case len(suffix) == 1+4 && suffix[0] == tagSlot:
		if len(val) != 1+16+8 || val[0] != slotVersion {
			return ErrBadRecord
		}
	}
	return nil
}

// oneRecord is a store that has one record under every key.
type oneRecord []byte

func (o oneRecord) Get([]byte) ([]byte, bool, error) { return o, true, nil }
func (o oneRecord) Set(_, _ []byte)                  {}
func (o oneRecord) Delete([]byte)                    {}
