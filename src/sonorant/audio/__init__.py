"""Sound and its files: `Audio`, reading, writing, and blocks of files too long for memory.

Files go through libsndfile (the soundfile package): WAV, FLAC, MP3, Ogg Vorbis and Ogg Opus. Rates
are converted by libsoxr at its HQ setting, whole or block by block with the same samples. What can
be wrong with a file is found here, so that no model ever sees silence where sound is missing.
"""

from sonorant.audio.reading import AudioInfo, blocks, info, read
from sonorant.audio.sound import Audio
from sonorant.audio.writing import AudioWriter, write

__all__ = ["Audio", "AudioInfo", "AudioWriter", "blocks", "info", "read", "write"]
