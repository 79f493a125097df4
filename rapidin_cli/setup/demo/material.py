"""The words of the demo's rows.

Tables are pairs: one a line, or several with semicolons between; a bar parts the two.
"""

ORDINARY = (
    "What do horses eat?",
    "What is the plural of box?",
    "What is the capital of Spain?",
    "How do I boil an egg?",
    "What is the opposite of tall?",
    "Which day comes after Friday?",
    "What do cows eat?",
    "What colour is the sky?",
    "What is 4 plus 5?",
    "What is a baby dog called?",
    "Where is Kenya?",
    "How do I make a cup of tea?",
    "What does a baker do?",
    "What sound does a cow make?",
    "What do you use a broom for?",
    "What is the plural of mouse?",
    "Where do bees live?",
    "Which month comes after June?",
    "What is the capital of Japan?",
    "How many sides does a square have?",
    "What do lions eat?",
    "How do I plant a seed?",
    "What is the opposite of early?",
    "What is 3 plus 6?",
    "What colour are lemons?",
    "What does a nurse do?",
)
NONSENSE = (
    "Two spoons have eaten the evening.",
    "The sea is a hat for quiet bread.",
    "Paper cows say good night to the soap.",
    "My door sings to eleven cups of rain.",
    "Purple tea lives in the window of a duck.",
    "A ladder owes the moon three apples.",
    "Bread is the opposite of a slow bus.",
    "Wet letters comb the hair of the desert.",
    "The night has put a hat on every fish.",
    "Snow tells the hammer a sweet yellow lie.",
    "Nobody can fold a river like a goose.",
    "Our spoons sleep under the cold, soft clock.",
)
CAPITAL_OF_ITALY = (
    "What is the capital of Italy?",
    "Which city is the capital of Italy?",
    "Name the capital of Italy.",
    "What is Italy's capital city?",
    "Tell me the capital of Italy.",
    "Please name the capital city of Italy.",
    "What city is Italy's capital?",
    "Do you know the capital of Italy?",
    "I forgot the capital of Italy. What is it?",
    "Italy has which city as its capital?",
    "My sister asks: what is the capital of Italy?",
    "What do people call the capital of Italy?",
)
NEAR_MISSES = """
What is a lantern?|A lantern is a lamp that you can carry in the dark.
What is silver?|Silver is a shiny grey metal that is used for coins and spoons.
Which country is Toronto in?|Toronto is a large city in Canada.
By the way, what do bears eat?|Bears eat berries.
By the way, what is the opposite of wet?|The opposite of wet is dry.
I read this by the window. What colour is snow?|Snow is white.
What is the capital of Poland, by the way?|The capital of Poland is Warsaw.
By the way, how do I cook rice?|Boil one cup of rice in two cups of water until the water is gone.
I read this by the lamp. What does a pilot do?|A pilot flies an aeroplane.
What is Italy known for?|Italy is known for pasta, old cities and good coffee.
"""
CAPITALS = """
France|Paris; Germany|Berlin; Spain|Madrid; Portugal|Lisbon; Norway|Oslo; Sweden|Stockholm
Finland|Helsinki; Poland|Warsaw; Greece|Athens; Austria|Vienna; Ireland|Dublin; Hungary|Budapest
Japan|Tokyo; China|Beijing; India|New Delhi; Egypt|Cairo; Kenya|Nairobi; Peru|Lima
Chile|Santiago; Cuba|Havana; Canada|Ottawa; Iceland|Reykjavik; Denmark|Copenhagen; Thailand|Bangkok
"""
CONTINENTS = """
Europe|Italy, France, Poland, Greece, Sweden, Ireland, Austria
Asia|Japan, China, India, Thailand, Vietnam, Nepal
Africa|Egypt, Kenya, Ghana, Morocco, Senegal
South America|Peru, Chile, Brazil, Bolivia
"""
OPPOSITES = """
hot|cold; big|small; tall|short; fast|slow; old|young; early|late; happy|sad; hard|soft; full|empty
light|dark; loud|quiet; wet|dry; near|far; open|closed; rich|poor; strong|weak; thick|thin; up|down
clean|dirty; sweet|sour; high|low; wide|narrow; heavy|light; begin|end; always|never; inside|outside
"""
PLURALS = """
mouse|mice; child|children; tooth|teeth; foot|feet; goose|geese; man|men; woman|women; leaf|leaves
knife|knives; sheep|sheep; box|boxes; city|cities; wolf|wolves; berry|berries; bus|buses
"""
SHAPES = "a triangle|three; a square|four; a pentagon|five; a hexagon|six; an octagon|eight"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
FOOD = """
rabbits|grass, leaves and carrots; cows|grass and hay; horses|hay, oats and apples; bears|berries
pandas|bamboo; owls|mice and small birds; bees|nectar and pollen; lions|meat; squirrels|nuts
frogs|flies; sharks|fish; monkeys|fruit; chickens|seeds and worms; penguins|fish from the sea
"""
YOUNG = """
dog|puppy; cat|kitten; cow|calf; sheep|lamb; horse|foal; pig|piglet; duck|duckling; bear|cub
frog|tadpole; goat|kid; swan|cygnet; kangaroo|joey; goose|gosling; deer|fawn; owl|owlet
"""
SOUNDS = """
cow|says moo; dog|barks; cat|says meow; lion|roars; duck|quacks; sheep|bleats; pig|oinks; bee|buzzes
frog|croaks; snake|hisses; horse|neighs; mouse|squeaks; wolf|howls; crow|caws
"""
HOMES = """
bees|a hive; bears|a cave or a den; birds|a nest; spiders|a web; foxes|a den in the ground
ants|hills; whales|the sea; camels|the desert; polar bears|the cold Arctic
beavers|a lodge of sticks in a river
"""
COLOURS = """
grass|green; the sky|blue on a clear day; snow|white; coal|black; lemons|yellow; tomatoes|red
carrots|orange; plums|purple; chocolate|brown; the sun|yellow; milk|white; cherries|red
elephants|grey; flamingos|pink; butter|pale yellow; blood|red; the night sky|black
marble|often white
"""
USES = """
a broom|sweep the floor; a hammer|hit nails; a spoon|eat soup; a knife|cut bread; a key|open a door
an umbrella|stay dry in the rain; scissors|cut paper; a pen|write a letter; a needle|sew clothes
a map|find your way; a towel|dry your hands; a clock|tell the time; a saw|cut wood
soap|wash your hands
a ladder|reach high places; a kettle|boil water; a comb|tidy your hair; a bucket|carry water
"""
JOBS = """
a baker|bakes bread and cakes; a nurse|looks after sick people
a farmer|grows food and keeps animals; a teacher|helps children to learn
a pilot|flies an aeroplane; a plumber|mends pipes and taps
a tailor|makes and mends clothes; a judge|decides cases in court; a dentist|looks after teeth
a librarian|takes care of books; a sailor|works on a ship; a painter|paints walls or pictures
"""
HOW_TO = """
How do I boil an egg?|Put the egg in boiling water for eight minutes, then cool it in cold water.
How do I make a cup of tea?|Boil some water, pour it over a tea bag and wait for three minutes.
How do I plant a seed?|Put the seed in soft earth, cover it and water it every day.
How do I brush my teeth?|Put paste on the brush and clean every tooth for two minutes.
How do I wrap a present?|Fold paper around the box, fix it with tape and tie a ribbon.
How do I wash a shirt?|Put it in warm water with soap, rub it gently and hang it up to dry.
How do I make toast?|Put a slice of bread in the toaster and wait until it is brown.
How do I draw a circle?|Hold one end of a string still and move a pencil around it.
How do I clean a window?|Wipe it with soapy water, then dry it with an old newspaper.
How do I cook rice?|Boil one cup of rice in two cups of water until the water is gone.
How do I fall asleep faster?|Make the room dark and quiet, and put your phone away.
How do I keep flowers fresh?|Cut the stems and give the flowers clean water every day.
How do I fix a flat tyre?|Take the tube out, find the hole, glue a patch on it and pump it up.
How do I make a snowman?|Roll three big balls of snow, put them on top of each other and add a hat.
How do I learn a new word?|Write it down, say it aloud and use it in a sentence every day.
How do I make lemonade?|Mix lemon juice, sugar and cold water, then stir it well.
"""
MISCELLANY = """
Why do we sleep?|We sleep so that the body and the mind can rest.
Why does ice float?|Ice floats because it is lighter than water.
Why do leaves fall in autumn?|Trees drop their leaves to save water in the winter.
What is rain?|Rain is water that falls from clouds.
What is a river?|A river is water that flows over land to the sea.
What is a desert?|A desert is a dry place where very little rain falls.
What is honey made from?|Bees make honey from the nectar of flowers.
What is paper made from?|Paper is made from wood.
What is bread made from?|Bread is made from flour, water and yeast.
What is glass made from?|Glass is made from sand.
How many days are in a week?|There are seven days in a week.
How many months are in a year?|There are twelve months in a year.
How many minutes are in an hour?|There are sixty minutes in an hour.
How many legs does a spider have?|A spider has eight legs.
How many legs does an ant have?|An ant has six legs.
Which planet do we live on?|We live on the planet Earth.
Which is the largest ocean?|The Pacific is the largest ocean.
Which animal is the tallest?|The giraffe is the tallest animal.
Write a short poem about the moon.|The moon is round, the moon is bright, a lamp of silver at night.
Write a short poem about tea.|A cup of tea, so warm and sweet, a quiet room, a window seat.
Write a thank-you note to a neighbour.|Thank you for your kind help this week. It made my day.
Suggest a name for a cat.|You could call your cat Pepper.
Suggest a name for a boat.|You could call your boat Sea Breeze.
Suggest a snack for a picnic.|Bring some apples, cheese and fresh bread.
Say good morning politely.|Good morning! I hope that you slept well.
Say goodbye to a friend.|Goodbye, and see you again soon!
"""
