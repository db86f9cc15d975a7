package guest

// An Account is how a machine that boots from a disk image is reached if it has no agent of obx's: by ssh, as OBuilder does.
type Account struct {
	User string // to log in as; the default is root, or Administrator. Another one needs sudo or doas without a password
	Key  string // file of the private key; without it, the disk must have the agent
	Port int    // of the guest's sshd; the default is 22
}
