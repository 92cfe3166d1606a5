"""Words by which dive/decisive/polarity.py finds where a statement begins, continues and ends."""

from dive.lexicon.words import word_set

VERBS = word_set(
    "is are was were has have had appears appear remains remain demonstrates demonstrate shows show"
    " projects project terminates overlies persists persist measures represents represent reflects"
    " may might could can cannot does do suggests suggest seems extends lies there"
)
# a verb before these does not end a list: "no effusion, pneumothorax is seen"
PERCEIVED = word_set(
    "seen identified noted visualized visualised demonstrated appreciated evident present detected"
    " observed apparent found visible recognized shown be been"
)
# a statement begins: "no effusion, stable cardiomegaly"
RESTART = word_set(
    "new the there a an this these that it its stable unchanged again status post"
    " persistent persisting"
    " chronic old healed healing remote redemonstrated normal now interval improved improving"
    " worsening worsened increased decreased increasing decreasing degenerative tortuous calcified"
    " atherosclerotic mildly moderately severely slightly minimally grossly known prior previous"
    " previously heart cardiac lungs lung mediastinum mediastinal aorta bones bony osseous trachea"
    " midline incidental incidentally note hyperinflated hyperexpanded low residual resolving"
    " definite obvious enlarged patient patient's left's sternotomy median cardiomediastinal hilar"
    " thoracic spine we"
)
# ... unless "or" shows that they go on with a list: "no mass, hilar adenopathy or fracture"
REGIONS = word_set("cardiac mediastinal bony osseous cardiomediastinal hilar thoracic spine")
# a finding that is present begins with these, unless "or" shows that the list goes on
DEGREE = word_set(
    "mild moderate severe small tiny trace minimal slight minor marked left right bilateral"
    " bibasilar biapical multiple several few some prominent subtle streaky patchy linear"
    " borderline scattered diffuse hazy basilar extensive two three one both large larger massive"
    " huge sizable sizeable moderately mod sm considerable increasing enlarging worsening bulky"
    " dense subsegmental platelike discoid compressive"
)
UNITS = word_set("cm mm")
# after "with" these continue ("possible pneumonia with superimposed effusion"), a size does not
COMPANIONS = word_set(
    "associated superimposed underlying overlying adjacent accompanying concomitant concurrent"
    " coexisting coexistent component air parapneumonic developing early"
)
# these describe a finding right before them: "no effusion, cardiomegaly unchanged"
COURSE = word_set(
    "unchanged stable persists persistent persisting improved improving worse worsened worsening"
    " increased increasing decreased decreasing larger smaller resolving"
)
# a hedge before one of these is of the presence of a finding, "likely loculated" is not
EXISTING = word_set(
    "present seen there given based as because too though although identified noted"
)
HEDGES = word_set("possibly probably likely perhaps presumably maybe conceivably potentially")
FAR = 60  # words that are searched ahead for the "or" of a list
OR = frozenset(("or", "nor"))
LIST_BREAKS = word_set("but however although though except otherwise while whereas")
NOT = word_set("not never isn't aren't wasn't weren't doesn't abnormal")
# parts of a device or of the image: "tip not seen" denies no tube
PARTS = word_set(
    "tip tips port ports hole holes end ends border borders margin margins knob hemidiaphragm"
    " hemidiaphragms diaphragm angle angles sulcus sulci silhouette apex apices trachea carina"
    " fissure hilum hila contour contours course distal proximal connection clavicle spine edge"
)
# what may follow the "no" or "none" that answers a heading
ANSWER_TAIL = word_set(
    "seen present identified evident detected visualized visualised demonstrated noted found"
    " visible supine portable upright view"
    " appreciated apparent observed evidence of it such significant acute definite obvious any this"
    " that same is are there on either side bilaterally today currently at time exam film study the"
)
# between a heading and its colon
ASIDE = word_set(
    "left right bilateral both small moderate large mild severe trace tiny new old acute chronic s"
)
